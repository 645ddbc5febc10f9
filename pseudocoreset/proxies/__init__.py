"""Gaussian stand-ins for the full-data and the coreset posterior."""

from pseudocoreset.proxies.function_space import FunctionProxy, Isotropic, Trajectory, resolve_proxy

__all__ = ["FunctionProxy", "Isotropic", "Trajectory", "resolve_proxy"]
