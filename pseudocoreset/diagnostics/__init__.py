"""What a posterior predicts, how far it is from another, whether its chains converged; plots, a report."""

from pseudocoreset.diagnostics.agreement import Agreement, Comparison, compare_posteriors
from pseudocoreset.diagnostics.convergence import Convergence
from pseudocoreset.diagnostics.conversion import to_arviz
from pseudocoreset.diagnostics.distances import (
    GaussianDivergences,
    energy_distance,
    gaussian_divergences,
    maximum_mean_discrepancy,
    sliced_wasserstein,
)
from pseudocoreset.diagnostics.metrics import Metrics, expected_calibration_error, predictive_metrics
from pseudocoreset.diagnostics.plots import (
    plot_agreement,
    plot_coreset,
    plot_history,
    plot_rank,
    plot_reliability,
    plot_trace,
)
from pseudocoreset.diagnostics.report import report
from pseudocoreset.diagnostics.reweighting import Reweighting, reweight
from pseudocoreset.diagnostics.shift import Detection, detect_foreign

__all__ = [
    "Agreement",
    "Comparison",
    "Convergence",
    "Detection",
    "GaussianDivergences",
    "Metrics",
    "Reweighting",
    "compare_posteriors",
    "detect_foreign",
    "energy_distance",
    "expected_calibration_error",
    "gaussian_divergences",
    "maximum_mean_discrepancy",
    "plot_agreement",
    "plot_coreset",
    "plot_history",
    "plot_rank",
    "plot_reliability",
    "plot_trace",
    "predictive_metrics",
    "report",
    "reweight",
    "sliced_wasserstein",
    "to_arviz",
]
