"""Coresets that match score and curvature at the mode of all data."""

from pseudocoreset.subsets.curvature.method import Curvature

__all__ = ["Curvature"]
