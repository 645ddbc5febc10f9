"""Datasets: by name through tensorflow-datasets, or from a user's own arrays."""

from pseudocoreset.data.dataset import Dataset, Split
from pseudocoreset.data.loading import DATASET_NAMES, load_dataset
from pseudocoreset.data.preprocessing import Preprocessing

__all__ = ["DATASET_NAMES", "Dataset", "Preprocessing", "Split", "load_dataset"]
