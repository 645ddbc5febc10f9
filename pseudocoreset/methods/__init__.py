"""The front doors: one ``fit_<method>`` for each objective, all of one shape."""

from pseudocoreset.methods.bpc import fit_bpc_fkl, fit_bpc_rkl, fit_bpc_w
from pseudocoreset.methods.fbpc import fit_fbpc

__all__ = ["fit_bpc_fkl", "fit_bpc_rkl", "fit_bpc_w", "fit_fbpc"]
