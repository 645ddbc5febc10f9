"""Simulation-based calibration: a test of a sampler, and of coresets, by data whose parameters are known."""

from pseudocoreset.sbc.calibration import Calibration
from pseudocoreset.sbc.pictures import plot_calibration
from pseudocoreset.sbc.running import calibrate

__all__ = ["Calibration", "calibrate", "plot_calibration"]
