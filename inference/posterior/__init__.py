"""Draws of a sampling run and what goes with them: their model, their files, what each predicts, ArviZ's tree."""

from pseudocoreset.inference.posterior.draws import Posterior
from pseudocoreset.inference.posterior.files import flatten_groups, library_versions, split_arrays

__all__ = ["Posterior", "flatten_groups", "library_versions", "split_arrays"]
