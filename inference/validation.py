"""Checks of everything that ``sample`` takes, before anything is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.arguments import described
from pseudocoreset.data.augmentation import Augmentation, resolve_augmentation
from pseudocoreset.data.coercion import as_inputs, as_several, as_weights, default_dtype
from pseudocoreset.data.doors import bind_to_rows
from pseudocoreset.data.sources.records import Inputs
from pseudocoreset.data.targets import as_targets, is_one_hot
from pseudocoreset.layout import InputLayout, is_several
from pseudocoreset.models import Model
from pseudocoreset.rows import ModelInputs, Rows
from pseudocoreset.validation import check_choice, check_integer

if TYPE_CHECKING:
    from pseudocoreset.inference.engine.kernel import Kernel

__all__ = [
    "Source",
    "input_struct",
    "resolve_augment",
    "resolve_batch_size",
    "resolve_data",
    "resolve_init_params",
    "resolve_keep",
    "resolve_predict_on",
    "stored_inputs",
]

MINIBATCH_FROM = 2000
DEFAULT_BATCH_SIZE = 128


class Source(NamedTuple):
    """Training data as they go to the device, and what is known of them."""

    rows: Rows  # on the host; inputs may be on disk
    preprocessing: Any
    name: str = ""
    is_soft: bool = False  # targets (n, num_classes) of a coreset
    summary: Any = None  # of the preprocessing that made the model inputs, None where it is not known
    is_weighted: bool = False  # points with weights, whose targets may be learned
    layout: InputLayout | None = None

    def bind(self, model: Model, argument: str = "data") -> tuple[Model, np.ndarray]:
        """The model bound to these rows, and their targets as it scores them; see ``doors.bind_to_rows``."""
        x = ModelInputs(self.rows.inputs, self.preprocessing, self.layout)
        is_soft, is_learned = self.is_soft, self.is_weighted
        return bind_to_rows(model, x, self.rows.targets, argument, is_soft=is_soft, learned_targets=is_learned)


def resolve_batch_size(batch_size: Any, num_data: int, kernel: Kernel) -> int | None:
    """Rows of a minibatch, None for all data."""
    if not kernel.uses_minibatches:
        if batch_size is not None:
            raise ValueError(
                f"batch_size={batch_size}: kernel {kernel.name!r} accepts or rejects by the exact density; leave "
                "batch_size out (chunk_size bounds its memory), or take kernel='sghmc'"
            )
        return None
    if batch_size is None:
        return DEFAULT_BATCH_SIZE if num_data > MINIBATCH_FROM else None
    size = check_integer(batch_size, "batch_size")
    if size > num_data:
        raise ValueError(f"batch_size={size} is more than the {num_data} data")
    return None if size == num_data else size


def resolve_augment(
    augment: Any, kernel: Kernel, feature_shape: tuple[int, ...], data_name: str
) -> Augmentation | None:
    """The augmentation of every gradient, None for none."""
    if augment is not None and not kernel.uses_minibatches:
        raise ValueError(
            f"augment={augment!r}: kernel {kernel.name!r} accepts or rejects by the exact density, which a random "
            "augmentation does not have; leave augment out, or take kernel='sghmc'"
        )
    return resolve_augmentation(augment, feature_shape, data_name)


def resolve_keep(keep: Any, model: Model, has_predict_on: bool) -> bool:
    """Whether the weights are kept."""
    check_choice(keep, "keep", ("auto", "weights", "functions"))
    if keep == "functions" and not (has_predict_on and model.has_function):
        missing = "predict_on, a split to evaluate on" if model.has_function else "a program with a site 'f'"
        raise ValueError(f"keep='functions' needs {missing}; give it, or take keep='weights'")
    return keep == "weights" or (keep == "auto" and not (has_predict_on and model.is_network))


def stored_inputs(split: Any) -> tuple[Inputs, Any]:
    """Inputs of a split as they go to the device, and the preprocessing that is left to do there.

    Bytes stay bytes, a quarter of the memory, and are preprocessed minibatch by minibatch; whitening, a dense
    matrix product a row, is done once.
    """
    if split.raw.dtype == np.uint8 and split.preprocessing.zca_matrix is None:
        return split.raw, split.preprocessing
    return split.packed, None


def input_struct(inputs: Inputs, preprocessing: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the model inputs that stored inputs become."""
    struct = jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)
    return jax.eval_shape(jnp.asarray if preprocessing is None else preprocessing.apply, struct)


def resolve_data(data: Any, *, takes_bytes: bool = False, argument: str = "data") -> Source:
    """Arrays and weights of a ``Dataset``, a ``Pseudocoreset``, ``(x, y)`` or ``(x, y, weights)``.

    Args:
        data: as given.
        takes_bytes: whether a pair may hold a table of uint8, as for models that are no networks.
        argument: how errors call it.
    """
    if hasattr(data, "train") and hasattr(data.train, "raw"):
        inputs, preprocessing = stored_inputs(data.train)
        rows = Rows(inputs, data.train.y, np.ones(len(inputs), np.float32))
        summary, layout = data.preprocessing.summary, data.train.layout
        return Source(rows, preprocessing, data.name, summary=summary, layout=layout)
    if all(hasattr(data, name) for name in ("inputs", "targets", "weights")):
        name, summary = str(data.metadata.get("data", "")), data.preprocessing.summary
        rows = Rows(data.packed, data.targets, data.weights)
        return Source(rows, None, name, data.is_soft, summary, True, data.layout)
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise TypeError(
            f"{argument} must be a Dataset, a Pseudocoreset, (x, y) or (x, y, weights); got {described(data)}"
        )
    x, layout = as_several(data[0], f"{argument}: x") if is_several(data[0]) else (data[0], None)
    inputs, targets = _model_arrays(x, data[1], argument, default_dtype(), takes_bytes=takes_bytes)
    weights = (
        np.ones(len(inputs), np.float32) if len(data) == 2 else as_weights(data[2], f"{argument}: weights", len(inputs))
    )
    return Source(Rows(inputs, targets, weights), None, is_weighted=len(data) == 3, layout=layout)


def resolve_predict_on(predict_on: Any, data: Any, argument: str = "predict_on") -> Any:
    """The split that function values are computed on; the test split of a ``Dataset`` by default."""
    from pseudocoreset.data import Preprocessing, Split

    if predict_on is None:
        predict_on = getattr(data, "test", None)
    if predict_on is None:
        return None
    if not hasattr(predict_on, "raw"):
        if not isinstance(predict_on, tuple | list) or len(predict_on) != 2:
            raise TypeError(f"{argument} must be a Split, (x, y) or None; got {described(predict_on)}")
        x, layout = as_several(predict_on[0], f"{argument}: x") if is_several(predict_on[0]) else (predict_on[0], None)
        x, y = _model_arrays(x, predict_on[1], argument, np.float32)
        if is_one_hot(y):
            raise ValueError(f"{argument}: y is one-hot; give the labels, y.argmax(axis=1)")
        predict_on = Split(raw=x, y=y, preprocessing=Preprocessing(is_known=False), layout=layout)
    if not hasattr(predict_on, "in_memory"):
        raise TypeError(f"{argument} must be a Split, (x, y) or None; got {described(predict_on)}")
    return predict_on.in_memory()


def _model_arrays(
    x: Any, y: Any, argument: str, dtype: Any, *, takes_bytes: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, as the model sees them, and targets of a pair."""
    is_bytes = getattr(x, "dtype", None) == np.uint8
    remedy = "enable float64 (jax.config.update('jax_enable_x64', True))" if argument == "data" else ""
    inputs = as_inputs(x, f"{argument}: x", dtype=dtype, remedy=remedy)
    if inputs.dtype == np.uint8 or (is_bytes and not takes_bytes):
        raise TypeError(
            f"{argument}: x has dtype uint8, but a pair holds inputs as the model sees them, floating point; give "
            "images to Dataset.from_arrays, which scales by 1/255, or scale them, x.astype('float32') / 255"
        )
    return inputs, as_targets(y, f"{argument}: y", len(inputs), dtype=dtype, remedy=remedy)


def resolve_init_params(
    init_params: Any, shapes: dict[str, Any], num_chains: int, argument: str = "init_params"
) -> dict[str, jax.Array] | None:
    """Starting points stacked over chains; a single one is broadcast.

    Args:
        init_params: ``{site: array}``, unconstrained, each of the site's shape or with a leading axis of
            chains.
        shapes: ``{site: ShapeDtypeStruct}`` of one chain.
        num_chains: number of chains.
        argument: how errors call it.
    """
    if init_params is None:
        return None
    if not isinstance(init_params, Mapping) or set(init_params) != set(shapes):
        given = sorted(init_params) if isinstance(init_params, Mapping) else type(init_params).__name__
        raise ValueError(f"{argument} must be a dictionary of the sites {sorted(shapes)}; got {given}")
    stacked = {}
    for name, wanted in shapes.items():
        array = np.asarray(init_params[name])
        if array.shape not in (wanted.shape, (num_chains, *wanted.shape)):
            raise ValueError(
                f"{argument}[{name!r}] has shape {array.shape}; wanted {wanted.shape} or "
                f"{(num_chains, *wanted.shape)}, unconstrained"
            )
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{argument}[{name!r}] is not finite")
        stacked[name] = jnp.broadcast_to(jnp.asarray(array, wanted.dtype), (num_chains, *wanted.shape))
    if len({np.asarray(init_params[name]).shape == wanted.shape for name, wanted in shapes.items()}) > 1:
        raise ValueError(f"{argument}: either all sites or none have a leading axis of {num_chains} chains")
    return stacked
