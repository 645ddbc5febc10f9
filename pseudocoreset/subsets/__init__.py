"""Methods that choose real data."""

from pseudocoreset.subsets.base import Choice, Chosen, Subset, subset_of
from pseudocoreset.subsets.curvature import Curvature
from pseudocoreset.subsets.giga import GIGA
from pseudocoreset.subsets.herding import Herding
from pseudocoreset.subsets.k_centres import KCentres
from pseudocoreset.subsets.sparse_vi import SparseVI
from pseudocoreset.subsets.uniform import Random

__all__ = ["GIGA", "Choice", "Chosen", "Curvature", "Herding", "KCentres", "Random", "SparseVI", "Subset", "subset_of"]
