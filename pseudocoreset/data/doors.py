"""What a model, data, a coreset and held-out data must have in common: checked at every door, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from pseudocoreset.data.preprocessing import are_same
from pseudocoreset.data.targets import check_labels, is_one_hot
from pseudocoreset.rows import ModelInputs

if TYPE_CHECKING:
    from pseudocoreset.coreset import Pseudocoreset
    from pseudocoreset.data.dataset import Dataset
    from pseudocoreset.models import Model

__all__ = ["bind_to", "bind_to_rows", "check_preprocessing", "check_start", "check_targets"]


def bind_to(model: Model, data: Dataset, *, check: bool = True) -> Model:
    """The model bound to a data set whose targets it can score, in every split.

    Args:
        model: a model.
        data: the data set.
        check: whether to try the program on the training data (``Model.bind``), not on shapes and labels alone.

    Raises:
        TypeError, ValueError: naming the split and what does not fit.
    """
    splits = {"data.validation": data.validation, "data.test": data.test}
    # A program of classes may take floats too (Bernoulli) or not (categorical): its run on them tells.
    is_real = data.num_classes is None and model.structure is not None and model.structure.y.dtype.kind in "iu"
    free = replace(model, structure=None) if is_real else model
    bound, _ = bind_to_rows(free, ModelInputs.of(data.train), data.train.y, "data", takes_soft=False, check=check)
    assert bound.structure is not None
    if data.num_classes is None and bound.structure.y.dtype.kind in "iu":
        raise ValueError(
            f"data has real targets, {model.name!r} takes class labels; give Dataset.from_arrays integers "
            "(y.astype(int)), or class_names"
        )
    for name, split in splits.items():
        if split is not None:
            check_targets(bound, jax.ShapeDtypeStruct(split.raw.shape, np.float32), split.y, name, takes_soft=False)
    return bound


def bind_to_rows(
    model: Model,
    inputs: ModelInputs,
    y: np.ndarray,
    argument: str,
    *,
    is_soft: bool = False,
    takes_soft: bool = True,
    learned_targets: bool = False,
    check: bool = True,
) -> tuple[Model, np.ndarray]:
    """The model bound to inputs and targets, and the targets as it scores them.

    Args:
        model: a model.
        inputs: as stored, with their preprocessing.
        y: targets.
        argument: how errors call the pair.
        is_soft: whether the targets are known to be class probabilities.
        takes_soft: whether class probabilities (n, num_classes) may stand for labels.
        learned_targets: whether targets may be off the support of a discrete likelihood.
        check: whether to try the program on these rows.

    Raises:
        TypeError, ValueError: as ``check_targets`` and ``Model.bind``.
    """
    dtype = np.float32 if inputs.preprocessing is not None else inputs.dtype
    struct = jax.ShapeDtypeStruct(inputs.shape, dtype)
    hard = y.argmax(axis=1).astype(np.int32) if is_soft else y
    if model.structure is None:
        model = _shaped(model, inputs, hard)
    assert model.structure is not None
    if model.layout != inputs.layout and (inputs.layout is not None or model.layout is not None):
        wanted = model.layout or "one array of floats"
        raise ValueError(
            f"{argument}: x holds {inputs.layout or 'one array of floats'}; this model was made for {wanted}"
        )
    # Before the program is tried on them: this says more of labels than that they have no likelihood.
    y = check_targets(model, struct, y, argument, takes_soft=takes_soft)
    if y.ndim > 1 + len(model.structure.y.shape):
        hard = y.argmax(axis=1).astype(np.int32)
    elif model.structure.y.dtype.kind in "iu":
        hard = y
    return model.bind(inputs, hard, check=check, learned_targets=learned_targets), y


def _shaped(model: Model, inputs: ModelInputs, y: np.ndarray) -> Model:
    """The model with its shapes alone; labels that came as floats become integers where the program needs them."""
    try:
        return model.bind(inputs, jax.ShapeDtypeStruct(y.shape, y.dtype))
    except ValueError as error:
        is_whole = y.dtype.kind == "f" and bool(np.all(y == np.round(y)))
        if not is_whole or not isinstance(error.__cause__, TypeError):
            raise
        return model.bind(inputs, jax.ShapeDtypeStruct(y.shape, np.int32))


def check_targets(
    model: Model, struct: jax.ShapeDtypeStruct, y: np.ndarray, argument: str, *, takes_soft: bool = True
) -> np.ndarray:
    """Targets that a bound model can score.

    Args:
        model: a bound model.
        struct: shape and dtype of the model inputs.
        y: targets.
        argument: how errors call the pair.
        takes_soft: whether class probabilities (n, num_classes) may stand for labels.

    Returns:
        The targets, hard labels as int32.

    Raises:
        TypeError, ValueError: naming the argument, what came, what is wanted, and a remedy.
    """
    assert model.structure is not None
    x_shape, x_dtype = struct.shape[1:], struct.dtype
    wanted_x, wanted_y = model.structure.x.shape, model.structure.y.shape
    if x_shape != wanted_x:
        raise ValueError(f"{argument}: x has features of shape {x_shape}; this model was made for {wanted_x}")
    if model.is_network and not np.issubdtype(x_dtype, np.floating):
        raise TypeError(
            f"{argument}: x has dtype {x_dtype}, a network takes floating point; scale the values, or give "
            "the raw images to Dataset.from_arrays"
        )
    classes = model.num_classes
    if takes_soft and classes is not None and wanted_y == () and y.shape[1:] == (classes,):
        rows = np.flatnonzero(np.any(y < 0, axis=1) | (np.abs(y.sum(axis=1) - 1) > 1e-3))
        if len(rows):
            raise ValueError(
                f"{argument}: y holds class probabilities, but row {rows[0]} is negative somewhere or sums "
                f"to {y[rows[0]].sum():.4g} instead of 1"
            )
        return y
    if y.shape[1:] != wanted_y:
        also = "" if classes is None or not takes_soft else f" or class probabilities (n, {classes})"
        wanted = "(n,)" if wanted_y == () else f"(n, {', '.join(map(str, wanted_y))})"
        raise ValueError(f"{argument}: y has shape {y.shape}; wanted {wanted}{also}{_shape_remedy(y, wanted_y)}")
    return y if classes is None else check_labels(y, classes, argument)


def _shape_remedy(y: np.ndarray, wanted: tuple[int, ...]) -> str:
    if wanted == () and is_one_hot(y):
        return "; it is one-hot, give the labels, y.argmax(axis=1)"
    if wanted == () and y.shape[1:] == (1,):
        return "; give y[:, 0]"
    if wanted == (1,) and y.ndim == 1:
        return "; give y[:, None]"
    return ""


def check_preprocessing(
    one: Mapping[str, Any] | None, other: Mapping[str, Any] | None, of_one: str, of_other: str, remedy: str
) -> None:
    """Refuse two sets of inputs that were made in different ways.

    Args:
        one: ``Preprocessing.summary`` of the first; None where it is not known, which fits everything.
        other: that of the second.
        of_one: how errors call the first.
        of_other: how errors call the second.
        remedy: what to do, a sentence without its full stop.

    Raises:
        ValueError: with both preprocessings in short, and the remedy.
    """
    if not are_same(one, other):
        raise ValueError(
            f"{of_one} was preprocessed as {_shown(one)}, {of_other} as {_shown(other)}: a model that learned from the "
            f"one would see other inputs in the other. {remedy}"
        )


def _shown(summary: Mapping[str, Any] | None) -> str:
    parts = []
    for name, value in (summary or {}).items():
        if name == "zca":
            parts.append(f"zca of {value[0]} features")
        elif name == "scale":
            parts.append(f"scale {value:.4g}")
        else:
            shown = ", ".join(f"{entry:.4g}" for entry in value[:3])
            parts.append(f"{name} ({shown}{', ...' if len(value) > 3 else ''})")
    return "(" + ", ".join(parts) + ")"


def check_start(
    coreset: Pseudocoreset,
    data: Dataset,
    *,
    images_per_class: int | None = None,
    size: int | None = None,
    weights: str | None = None,
) -> None:
    """Refuse a coreset to start from that does not fit the data, or arguments beside it that it contradicts.

    Args:
        coreset: the start.
        data: the data set.
        images_per_class: as given beside it, or None.
        size: as given beside it, or None.
        weights: as given beside it, ``"ones"``, ``"data"``, ``"learned"`` or None.

    Raises:
        ValueError: naming the argument.
    """
    if coreset.layout != data.train.layout:
        raise ValueError(
            f"coreset has the inputs {coreset.layout or 'of one array'}; the data have {data.train.layout}"
        )
    if coreset.packed.shape[1:] != data.feature_shape:
        raise ValueError(f"coreset has inputs of shape {coreset.packed.shape[1:]}; the data have {data.feature_shape}")
    check_preprocessing(
        coreset.preprocessing.summary,
        data.preprocessing.summary,
        "the coreset",
        "data",
        "Load the data as they were for the coreset; if its inputs are right, give it their preprocessing "
        "(dataclasses.replace(coreset, preprocessing=data.preprocessing))",
    )
    wanted = data.train.y.shape[1:]
    if not coreset.is_soft and coreset.targets.shape[1:] != wanted:
        raise ValueError(f"coreset has targets of shape {coreset.targets.shape}; the data have {data.train.y.shape}")
    if data.num_classes is not None and coreset.targets.ndim == 1:
        check_labels(coreset.targets, data.num_classes, "coreset", "the data")
    if data.num_classes is not None and coreset.is_soft and coreset.targets.shape[1] != data.num_classes:
        raise ValueError(f"coreset has {coreset.targets.shape[1]} classes; the data have {data.num_classes}")
    if size is not None and size != coreset.size:
        raise ValueError(f"coreset has {coreset.size} points, but size={size}; give one of them")
    if images_per_class is not None and images_per_class * (data.num_classes or 0) != coreset.size:
        raise ValueError(
            f"coreset has {coreset.size} points, but images_per_class={images_per_class} of {data.num_classes} "
            "classes; give one of them"
        )
    mass = {"ones": coreset.size, "data": data.train.num_data}.get(weights or "")
    if mass is not None and not np.isclose(coreset.mass, mass, rtol=1e-3):
        raise ValueError(
            f"coreset has the mass {coreset.mass:g}, but weights={weights!r} means {mass}; leave weights out to keep "
            f"those of the coreset, or give coreset.with_mass({weights!r})"
        )
