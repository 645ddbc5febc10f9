"""What predictions lose when the images they are asked about are corrupted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import numpy as np
from numpy.typing import ArrayLike

from pseudocoreset.arguments import checked, described
from pseudocoreset.data import CORRUPTIONS, SEVERITIES, Split, corrupted
from pseudocoreset.data.coercion import as_numbers
from pseudocoreset.diagnostics.predictions.metrics import Metrics, metrics_of, standard_errors
from pseudocoreset.diagnostics.predictions.predictive import Predictive, predict, predict_from_probabilities
from pseudocoreset.diagnostics.predictions.scores import contributions
from pseudocoreset.formatting import json_values, number, text_table, with_error
from pseudocoreset.inference.posterior.likelihoods import same_data
from pseudocoreset.inference.posterior.model import accepts_model
from pseudocoreset.validation import check_integer, check_key

if TYPE_CHECKING:
    from pseudocoreset.inference import Posterior

__all__ = ["Robustness", "Scores", "robustness"]

_NAMES = ("accuracy", "nll", "ece")


class Scores(NamedTuple):
    """Scores under corruption, each an array of one shape, with standard errors over the choice of test images.

    Attributes:
        accuracy: Fraction whose most probable class is the label.
        accuracy_standard_error: Of ``accuracy``.
        nll: Mean of -log of the model average; nats.
        nll_standard_error: Of ``nll``.
        ece: Expected calibration error over 15 bins.
        ece_standard_error: Of ``ece``, to first order.
        degradation: ``1 - accuracy / clean accuracy``, the fraction of the clean accuracy that is lost.
        degradation_standard_error: Of ``degradation``; it takes into account that both accuracies are of the same
            images.
    """

    accuracy: np.ndarray
    accuracy_standard_error: np.ndarray
    nll: np.ndarray
    nll_standard_error: np.ndarray
    ece: np.ndarray
    ece_standard_error: np.ndarray
    degradation: np.ndarray
    degradation_standard_error: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Robustness:
    """Scores of one predictive distribution on corrupted images, beside those on the images as they are.

    Attributes:
        corruptions: Names, C of them.
        severities: S of them.
        clean: Scores on the images as they are.
        cells: (C, S), one entry a corruption and severity.
        by_corruption: (C,), averages over severities.
        overall: Scalars, averages over corruptions and severities.
    """

    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    clean: Metrics
    cells: Scores
    by_corruption: Scores
    overall: Scores

    @property
    def accuracy(self) -> np.ndarray:
        """(C, S) accuracy."""
        return self.cells.accuracy

    @property
    def nll(self) -> np.ndarray:
        """(C, S) negative log-likelihood."""
        return self.cells.nll

    @property
    def ece(self) -> np.ndarray:
        """(C, S) expected calibration error."""
        return self.cells.ece

    @property
    def mean_accuracy(self) -> float:
        """Accuracy averaged over corruptions and severities."""
        return float(self.overall.accuracy)

    @property
    def relative_degradation(self) -> float:
        """Fraction of the clean accuracy that is lost on average (Kim et al. 2023, Table 3, there in percent)."""
        return float(self.overall.degradation)

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, ready for JSON."""
        return json_values(
            {
                "corruptions": self.corruptions,
                "severities": self.severities,
                "clean": self.clean.as_dict(),
                **{name: getattr(self, name)._asdict() for name in ("cells", "by_corruption", "overall")},
            }
        )

    def __str__(self) -> str:
        severities = [str(severity) for severity in self.severities]
        columns = [*severities, "accuracy", "NLL", "ECE", "degradation, %"]
        rows = [
            [name, *map(number, accuracies), *_row(self.by_corruption, index)]
            for index, (name, accuracies) in enumerate(zip(self.corruptions, self.accuracy, strict=True))
        ]
        clean = self.clean
        rows += [
            ["average", *map(number, self.accuracy.mean(0)), *_row(self.overall, ())],
            [
                "clean",
                *("" for _ in severities),
                with_error(clean.accuracy, clean.accuracy_standard_error),
                with_error(clean.nll, clean.nll_standard_error),
                with_error(clean.ece, clean.ece_standard_error),
                "",
            ],
        ]
        heading = (
            f"Corrupted images: accuracy by severity, and averages over severities ± standard error, "
            f"{clean.num_data} images, {clean.num_draws} draws"
        )
        return text_table((heading, columns, rows))


@accepts_model
@checked
def robustness(
    posterior_or_predict: Posterior | Callable[[np.ndarray], ArrayLike],
    split: Split,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    key: jax.Array,
    clean: Posterior | ArrayLike | None = None,
) -> Robustness:
    """Score the model average on every corruption and severity of a split (``pseudocoreset.data.corrupt``).

    The relative degradation of Kim et al. 2023, Table 3, is ``(a - b) / a`` with a the accuracy on the images as
    they are and b that on the corrupted ones; the paper gives it in percent, with b averaged over what it does not
    say: here over all severities. Its table averages over the ten corruptions, which is the degradation of the
    averaged accuracy. Standard errors are over the choice of test images: those of averages are of each image's
    average, so they allow for scores on one image being alike, and that of the degradation is
    ``sd(b_i - (b / a) a_i) / (a sqrt(n))`` (delta method). None contains the choice of draws or of the noise.

    Args:
        posterior_or_predict: A ``Posterior`` that kept its weights, or a function that takes model inputs
            (n, h, w, c) float32 to averaged class probabilities (n, classes).
        split: Images and their labels, usually ``data.test`` or a part of it.
        corruptions: Names that ``corrupt`` knows, each once.
        severities: Of 1 to 5, each once.
        key: A key from ``jax.random.key``; the scores of a corruption do not depend on which others are asked for.
        clean: The posterior already evaluated on ``split``, or for a function its probabilities there; computed
            where not given. A posterior that was made with ``predict_on=split`` needs no second evaluation.

    Returns:
        ``Robustness``. One evaluation of the split at a time is held in memory.

    Raises:
        TypeError: No posterior and no function, or a key that is none.
        ValueError: A posterior without weights or that does not know its model, no classes, an empty or repeated
            choice, an unknown name, or ``clean`` of another split.
    """
    corruptions, severities = _distinct(corruptions, "corruptions"), _distinct(severities, "severities")
    severities = tuple(check_integer(severity, "each of severities") for severity in severities)
    check_key(key)
    predictor = _predictor(posterior_or_predict)
    # Names and severities are known to be good before the first evaluation, which may take long.
    for name in corruptions:
        for severity in severities:
            corrupted(split.head(1), name, severity, key)
    base = predictor(split) if clean is None else _given(clean, split)
    if base.log_probabilities is None:
        raise ValueError("robustness is of predicted classes; this model has real targets")
    clean_metrics, right = metrics_of(base), contributions(base)["accuracy"]

    # What each image adds to each score: the average over any axes has the standard error of its own last axis.
    values = np.empty((len(_NAMES), len(corruptions), len(severities), len(split)))
    for row, name in enumerate(corruptions):
        for column, severity in enumerate(severities):
            parts = contributions(predictor(corrupted(split, name, severity, key)))
            values[:, row, column] = [parts[score] for score in _NAMES]
    return Robustness(
        corruptions=corruptions,
        severities=severities,
        clean=clean_metrics,
        cells=_scores(right, values),
        by_corruption=_scores(right, values.mean(2)),
        overall=_scores(right, values.mean((1, 2))),
    )


def _scores(clean: np.ndarray, values: np.ndarray) -> Scores:
    """Scores of (3, ..., n) contributions beside the (n,) of clean accuracy."""
    with np.errstate(divide="ignore", invalid="ignore"):  # nothing to lose where nothing was right
        kept = values[0].mean(-1) / clean.mean()
        lost_error = standard_errors(values[0] - kept[..., None] * clean) / clean.mean()
    accuracy, nll, ece = values
    return Scores(
        accuracy=np.asarray(accuracy.mean(-1)),
        accuracy_standard_error=standard_errors(accuracy),
        nll=np.asarray(nll.mean(-1)),
        nll_standard_error=standard_errors(nll),
        ece=np.asarray(ece.mean(-1)),
        ece_standard_error=standard_errors(ece),
        degradation=np.asarray(1 - kept),
        degradation_standard_error=np.asarray(lost_error),
    )


def _predictor(source: Any) -> Callable[[Split], Predictive]:
    if hasattr(source, "function_values"):
        posterior = cast("Posterior", source)
        return lambda split: predict(posterior.evaluate(split))
    if not callable(source) or isinstance(source, type):
        raise TypeError(
            f"posterior_or_predict must be a Posterior or a function of model inputs; got {described(source)}"
        )
    return lambda split: predict_from_probabilities(np.asarray(source(split.x)), split.y)


def _given(clean: Any, split: Split) -> Predictive:
    if not hasattr(clean, "function_values"):
        probabilities = as_numbers(clean, "clean")
        if probabilities.ndim != 2 or len(probabilities) != len(split.y):
            raise ValueError(f"clean must be probabilities ({len(split.y)}, C); got shape {probabilities.shape}")
        return predict_from_probabilities(probabilities, split.y, name="clean")
    if clean.predict_on is None or not same_data(clean.predict_on, split):
        raise ValueError("clean must be a posterior evaluated on this split: posterior.evaluate(split)")
    return predict(clean)


def _distinct(values: Sequence[Any], argument: str) -> tuple[Any, ...]:
    if isinstance(values, str) or not len(values) or len(set(values)) < len(values):
        raise ValueError(f"{argument} must be a sequence of one or more, each once; got {values!r}")
    return tuple(values)


def _row(scores: Scores, index: Any) -> list[str]:
    pairs = [
        (scores.accuracy, scores.accuracy_standard_error),
        (scores.nll, scores.nll_standard_error),
        (scores.ece, scores.ece_standard_error),
    ]
    percent = 100 * scores.degradation[index], 100 * scores.degradation_standard_error[index]
    return [
        *(with_error(float(value[index]), float(error[index])) for value, error in pairs),
        f"{percent[0]:.1f} ± {percent[1]:.1f}",
    ]
