"""What a posterior predicts, how far it is from another, whether its chains converged; plots, a report."""

from pseudocoreset.diagnostics.agreement import Agreement, Comparison, compare_posteriors
from pseudocoreset.diagnostics.convergence import Convergence
from pseudocoreset.diagnostics.conversion import to_arviz
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

__all__ = [
    "Agreement",
    "Comparison",
    "Convergence",
    "Metrics",
    "compare_posteriors",
    "expected_calibration_error",
    "plot_agreement",
    "plot_coreset",
    "plot_history",
    "plot_rank",
    "plot_reliability",
    "plot_trace",
    "predictive_metrics",
    "report",
    "to_arviz",
]
