"""Coresets that match score and curvature at the mode of all data."""

from pseudocoreset.subsets.curvature.method import Curvature
from pseudocoreset.subsets.curvature.mode import NoCurvatureError

__all__ = ["Curvature", "NoCurvatureError"]
