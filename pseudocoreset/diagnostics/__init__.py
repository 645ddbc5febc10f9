"""What a posterior predicts, how far it is from another, whether its chains converged; plots, a report."""

from pseudocoreset.diagnostics.agreement import Agreement
from pseudocoreset.diagnostics.calibration import Calibration, calibrate
from pseudocoreset.diagnostics.calibration_plots import plot_calibration
from pseudocoreset.diagnostics.chain_plots import (
    plot_energy,
    plot_ess,
    plot_forest,
    plot_marginals,
    plot_rank,
    plot_trace,
)
from pseudocoreset.diagnostics.compare import compare_posteriors
from pseudocoreset.diagnostics.comparison import Comparison, Comparisons
from pseudocoreset.diagnostics.comparison_plots import plot_agreement, plot_comparison, plot_reliability
from pseudocoreset.diagnostics.convergence import Convergence
from pseudocoreset.diagnostics.conversion import to_arviz
from pseudocoreset.diagnostics.differences import ScoreDifference, held_out_elpd
from pseudocoreset.diagnostics.distances import (
    GaussianDivergences,
    energy_distance,
    gaussian_divergences,
    maximum_mean_discrepancy,
    sliced_wasserstein,
)
from pseudocoreset.diagnostics.metrics import Metrics, expected_calibration_error, predictive_metrics
from pseudocoreset.diagnostics.moments import Moments, compare_moments
from pseudocoreset.diagnostics.plots import plot_coreset, plot_history
from pseudocoreset.diagnostics.report import report
from pseudocoreset.diagnostics.reweighting import Reweighting, reweight
from pseudocoreset.diagnostics.robustness import Robustness, robustness
from pseudocoreset.diagnostics.shift import Detection, detect_foreign

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
