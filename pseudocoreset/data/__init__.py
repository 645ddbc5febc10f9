"""Datasets: by name through tensorflow-datasets, or from a user's own arrays."""

from pseudocoreset.data.corruption.corruptions import CORRUPTIONS, SEVERITIES, corrupt, corrupted
from pseudocoreset.data.dataset import Dataset, Split
from pseudocoreset.data.preprocessing import Preprocessing
from pseudocoreset.data.sources.loading import DATASET_NAMES, load_dataset

__all__ = [
    "CORRUPTIONS",
    "DATASET_NAMES",
    "SEVERITIES",
    "Dataset",
    "Preprocessing",
    "Split",
    "corrupt",
    "corrupted",
    "load_dataset",
]
