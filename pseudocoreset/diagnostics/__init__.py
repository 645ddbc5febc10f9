"""What a posterior predicts, how far it is from another, whether its chains converged; plots, a report."""

from pseudocoreset.diagnostics.comparison.compare import compare_posteriors
from pseudocoreset.diagnostics.comparison.noise import Noise
from pseudocoreset.diagnostics.comparison.pictures import plot_agreement, plot_comparison, plot_reliability
from pseudocoreset.diagnostics.comparison.result import Comparison, Comparisons
from pseudocoreset.diagnostics.convergence import Convergence
from pseudocoreset.diagnostics.distances.agreement import Agreement
from pseudocoreset.diagnostics.distances.between import energy_distance, maximum_mean_discrepancy, sliced_wasserstein
from pseudocoreset.diagnostics.distances.gaussian import GaussianDivergences, gaussian_divergences
from pseudocoreset.diagnostics.distances.moments import Moments, compare_moments
from pseudocoreset.diagnostics.distances.reweighting import Reweighting, reweight
from pseudocoreset.diagnostics.page import report
from pseudocoreset.diagnostics.plots.chains import (
    plot_energy,
    plot_ess,
    plot_forest,
    plot_marginals,
    plot_rank,
    plot_trace,
)
from pseudocoreset.diagnostics.plots.coreset import plot_coreset
from pseudocoreset.diagnostics.plots.history import plot_history
from pseudocoreset.diagnostics.predictions.differences import ScoreDifference, held_out_elpd
from pseudocoreset.diagnostics.predictions.metrics import Metrics, expected_calibration_error, predictive_metrics
from pseudocoreset.diagnostics.shifts.corrupted import Robustness, robustness
from pseudocoreset.diagnostics.shifts.foreign import Detection, detect_foreign
from pseudocoreset.inference.posterior.arviz import to_arviz
from pseudocoreset.sbc import Calibration, calibrate, plot_calibration

__all__ = [
    "Agreement",
    "Calibration",
    "Comparison",
    "Comparisons",
    "Convergence",
    "Detection",
    "GaussianDivergences",
    "Metrics",
    "Moments",
    "Noise",
    "Reweighting",
    "Robustness",
    "ScoreDifference",
    "calibrate",
    "compare_moments",
    "compare_posteriors",
    "detect_foreign",
    "energy_distance",
    "expected_calibration_error",
    "gaussian_divergences",
    "held_out_elpd",
    "maximum_mean_discrepancy",
    "plot_agreement",
    "plot_calibration",
    "plot_comparison",
    "plot_coreset",
    "plot_energy",
    "plot_ess",
    "plot_forest",
    "plot_history",
    "plot_marginals",
    "plot_rank",
    "plot_reliability",
    "plot_trace",
    "predictive_metrics",
    "report",
    "reweight",
    "robustness",
    "sliced_wasserstein",
    "to_arviz",
]
