"""``Posterior``: draws, sample statistics, function values on held-out data, and what produced them."""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.arguments import checked
from pseudocoreset.batching import map_stack
from pseudocoreset.coreset import mass_note
from pseudocoreset.data.doors import bind_to_rows, check_preprocessing
from pseudocoreset.inference.data import function_summary, held_out_chunk_size
from pseudocoreset.inference.validation import resolve_predict_on, stored_inputs
from pseudocoreset.layout import InputLayout
from pseudocoreset.models import Model, Params
from pseudocoreset.rows import ModelInputs
from pseudocoreset.schema import (
    COUNT,
    NUMBER,
    POSITIVE,
    POSITIVE_COUNT,
    RECORD,
    TEXT,
    VERSION,
    Field,
    check_record,
    every,
    fits_together,
    listing,
    maybe,
    optional,
)
from pseudocoreset.storage import (
    atomic_directory,
    map_arrays,
    read_arrays,
    read_json,
    verify,
    write_arrays,
    write_json,
)

if TYPE_CHECKING:
    import xarray

    from pseudocoreset.data import Split

__all__ = ["ARRAYS_FILE", "RECORD_FILE", "Posterior", "flatten_groups", "library_versions", "split_arrays"]

SCHEMA = 1
EVALUATION_BLOCK_BYTES = 64 * 2**20
GROUPS = ("draws", "unconstrained", "sample_stats")
SINGLE_ARRAYS = ("function_values", "log_likelihood")
ARRAYS_FILE = "posterior.safetensors"
RECORD_FILE = "posterior.json"
RECORD_FIELDS = {
    "schema": VERSION,
    "preprocessing": maybe(RECORD),
    "metadata": RECORD,
    "run": maybe(RECORD),
}
_NOT_NEGATIVE = Field("a number, 0 or more", lambda value: NUMBER.holds(value) and value >= 0)


def _are_positive(value: Any) -> bool:
    return all(map(_are_positive, value)) if isinstance(value, list) else POSITIVE.holds(value)


METADATA_FIELDS = {
    name: optional(field)
    for name, field in {
        "model": TEXT,
        "kernel": TEXT,
        "temperature": POSITIVE,
        "num_chains": POSITIVE_COUNT,
        "num_warmup": COUNT,
        "num_samples": POSITIVE_COUNT,
        "thinning": POSITIVE_COUNT,
        "num_data": COUNT,
        "total_weight": _NOT_NEGATIVE,
        "batch_size": maybe(POSITIVE_COUNT),
        "augment": maybe(TEXT),
        "step_size": Field("a positive number, or a list of them", _are_positive),
        "options": RECORD,
        "preprocessing": maybe(RECORD),
        "key": RECORD,
        "versions": every(TEXT),
        "seconds": every(_NOT_NEGATIVE),
    }.items()
}
KEY_FIELDS = {"implementation": TEXT, "data": listing(COUNT)}


@dataclass(frozen=True, eq=False)
class Posterior:
    """Draws of one sampling run; arrays are NumPy's, in memory or mapped from disk, with leading axes (chain, draw).

    Attributes:
        draws: constrained values by site, (chain, draw, ...). All sites where weights were kept, otherwise
            those of at most 64 elements.
        function_values: (chain, draw, n, d) float32 on ``predict_on``, or None.
        log_likelihood: (chain, draw, n) of the targets of ``predict_on``, or None.
        sample_stats: (chain, draw) by ArviZ's names: ``lp`` the log density at temperature one
            (``lp_estimate``, from a minibatch or augmented images, where the kernel used them), ``step_size``,
            ``acceptance_rate``, ``diverging``, ``energy``, ``n_steps``, ``tree_depth``, and
            ``kinetic_temperature`` or ``configurational_temperature``, whose mean should be the temperature, as the
            kernel has them.
        predict_on: the split that function values belong to, or None.
        metadata: model, its sites, the coreset sampled on, kernel, temperature, counts, options, versions, key,
            seconds: JSON-able.
        unconstrained: unconstrained values by site, kept with the weights; what ``evaluate`` needs.
    """

    draws: dict[str, np.ndarray]
    function_values: np.ndarray | None
    log_likelihood: np.ndarray | None
    sample_stats: dict[str, np.ndarray]
    predict_on: Split | None
    metadata: dict[str, Any]
    unconstrained: dict[str, np.ndarray] | None

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return self._leading_shape[0]

    @property
    def num_draws(self) -> int:
        """Draws kept of each chain."""
        return self._leading_shape[1]

    @property
    def _leading_shape(self) -> tuple[int, int]:
        for array in (*self.sample_stats.values(), *self.draws.values(), self.function_values):
            if array is not None:
                return array.shape[0], array.shape[1]
        raise ValueError("this posterior holds no arrays")

    @checked
    def evaluate(self, model: Model, split: Any) -> Posterior:
        """The same draws with function values and log-likelihoods on another split.

        Args:
            model: the model that was sampled.
            split: ``Split``, or ``(x, y)``.

        Raises:
            ValueError: if the weights were not kept, the model has other sites, or the split was preprocessed
                otherwise than the data that were sampled on.
        """
        if self.unconstrained is None:
            raise ValueError(
                "the weights of this posterior were not kept, so it cannot be evaluated elsewhere; sample "
                "with keep='weights', or with predict_on=this split"
            )
        split = resolve_predict_on(split, None, "split")
        if split is None:
            raise TypeError("split must be a Split or (x, y); got None")
        inputs, preprocessing = stored_inputs(split)
        model, targets = bind_to_rows(model, ModelInputs.of(split), split.y, "split", takes_soft=False)
        check_preprocessing(
            self.metadata.get("preprocessing"),
            split.preprocessing.summary,
            "what this posterior was sampled on",
            "split",
            "Load both alike, or give (x, y) with x as the model is to see them",
        )
        shapes = {name: leaf.shape for name, leaf in jax.eval_shape(model.init, jax.random.key(0)).items()}
        kept = {name: array.shape[2:] for name, array in self.unconstrained.items()}
        if shapes != kept:
            raise ValueError(f"model has the sites {shapes}; these draws are of a model with {kept}")

        total = self.num_chains * self.num_draws
        flat = {name: array.reshape(total, *array.shape[2:]) for name, array in self.unconstrained.items()}
        rows = (jnp.asarray(inputs), jnp.asarray(targets))
        evaluation = _Evaluation(model, preprocessing, held_out_chunk_size(model, inputs.shape[1:]))
        width = (model.num_outputs or 0) + 1
        block = max(1, min(total, 64, EVALUATION_BLOCK_BYTES // (4 * width * len(inputs))))
        parts = []
        for first in range(0, total, block):
            # The last block overlaps the one before, so that every block has the shape that was compiled.
            start = min(first, total - block)
            values = _evaluate_block(evaluation, {n: a[start : start + block] for n, a in flat.items()}, rows)
            parts.append(jax.tree.map(lambda leaf, skip=first - start: np.asarray(leaf)[skip:], values))
        leading = self._leading_shape
        function_values, log_likelihood = jax.tree.map(
            lambda *leaves: np.concatenate(leaves).reshape(*leading, *leaves[0].shape[1:]), *parts
        )
        return replace(self, function_values=function_values, log_likelihood=log_likelihood, predict_on=split)

    @checked
    def with_deterministic(self, model: Model) -> Posterior:
        """The same draws with those of the deterministic sites of the program that all data share.

        Sites with an entry per datum, as ``"f"``, are not among them: ``evaluate`` gives those.

        Args:
            model: the model that was sampled.

        Raises:
            ValueError: if the weights were not kept, or the model has other sites or is not bound.
        """
        if self.unconstrained is None:
            raise ValueError("the weights of this posterior were not kept; sample with keep='weights'")
        wanted = {site.name: site.unconstrained_shape for site in model.sites}
        kept = {name: array.shape[2:] for name, array in self.unconstrained.items()}
        if wanted != kept:
            raise ValueError(f"model has the sites {wanted}; these draws are of a model with {kept}")
        every = jax.jit(jax.vmap(jax.vmap(lambda params: model.constrain(params, True))))(self.unconstrained)
        more = {name: np.asarray(leaf) for name, leaf in every.items() if name not in kept}
        return replace(self, draws={**self.draws, **more})

    @checked
    def to_arviz(self, *args: Any, **kwargs: Any) -> xarray.DataTree:
        """As an ArviZ ``DataTree``; see ``pseudocoreset.diagnostics.to_arviz``."""
        from pseudocoreset.diagnostics import to_arviz

        return to_arviz(self, *args, **kwargs)

    @checked
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``posterior.safetensors``, ``posterior.json`` and ``manifest.json``, whole or not at all.

        Args:
            path: directory to make; an existing one is replaced.
        """
        arrays = flatten_groups({name: getattr(self, name) for name in (*GROUPS, *SINGLE_ARRAYS)})
        if self.predict_on is not None:
            arrays |= split_arrays(self.predict_on)
        with atomic_directory(path) as folder:
            write_arrays(folder / ARRAYS_FILE, arrays)
            write_json(folder / RECORD_FILE, self.record(self.metadata, self.predict_on))

    @staticmethod
    @checked
    def record(metadata: dict[str, Any], predict_on: Split | None, run: dict[str, Any] | None = None) -> dict[str, Any]:
        """What stands beside the arrays in a file; ``run`` identifies what ``sample`` writes by itself."""
        return {
            "schema": SCHEMA,
            "preprocessing": None if predict_on is None else _split_metadata(predict_on),
            "metadata": metadata,
            "run": run,
        }

    @classmethod
    @checked
    def from_flat(
        cls, arrays: Mapping[str, np.ndarray], metadata: dict[str, Any], preprocessing: dict[str, Any] | None
    ) -> Posterior:
        """From arrays by the names they have in a file, and the rest of the record."""
        groups: dict[str, dict[str, np.ndarray]] = {name: {} for name in (*GROUPS, "predict_on", "preprocessing")}
        for name, array in arrays.items():
            group, _, rest = name.partition("/")
            if (group not in groups) if rest else (group not in SINGLE_ARRAYS):
                raise ValueError(f"there is an array {name!r}, which no posterior has")
            if rest:
                groups[group][rest] = array
        return cls(
            draws=groups["draws"],
            function_values=arrays.get("function_values"),
            log_likelihood=arrays.get("log_likelihood"),
            sample_stats=groups["sample_stats"],
            predict_on=_restored_split(groups["predict_on"], groups["preprocessing"], preprocessing),
            metadata=metadata,
            unconstrained=groups["unconstrained"] or None,
        )

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str], *, memory_map: bool = False) -> Posterior:
        """Read what ``save`` wrote, verified.

        Args:
            path: the directory.
            memory_map: leave the arrays on disk, to be read where they are used.

        Raises:
            FileNotFoundError: if there is nothing at ``path``.
            CorruptFileError: if a file is missing, truncated or altered, or holds something else.
            ValueError: if a newer version of this package wrote it.
        """
        folder = verify(path, RECORD_FILE, ARRAYS_FILE)
        place = folder / RECORD_FILE
        record = check_record(read_json(place), {"schema": VERSION}, place)
        if record["schema"] > SCHEMA:
            raise ValueError(
                f"{path} has schema {record['schema']}, this version of pseudocoreset reads up to {SCHEMA}; upgrade it"
            )
        check_record(record, RECORD_FIELDS, place)
        metadata = check_record(record["metadata"], METADATA_FIELDS, f"{place}, metadata")
        if "key" in metadata:
            check_record(metadata["key"], KEY_FIELDS, f"{place}, key")
        if "seconds" in metadata:
            check_record(metadata["seconds"], {"total": NUMBER}, f"{place}, seconds")
        if "total_weight" in metadata:
            check_record(metadata, {"num_data": COUNT}, f"{place}, metadata")
        arrays = (map_arrays if memory_map else read_arrays)(folder / ARRAYS_FILE)
        with fits_together(folder):
            posterior = cls.from_flat(arrays, metadata, record["preprocessing"])
            posterior._check_shapes()
        return posterior

    def _check_shapes(self) -> None:
        """Raise ``ValueError`` unless all arrays are of the same chains, draws and held-out data."""
        arrays = flatten_groups({name: getattr(self, name) for name in (*GROUPS, *SINGLE_ARRAYS)})
        leading = self._leading_shape
        for name, array in arrays.items():
            if array.shape[:2] != leading:
                raise ValueError(f"{name} has shape {array.shape}; the others begin with {leading}")
        held_out = {name: arrays[name] for name in SINGLE_ARRAYS if name in arrays}
        counts = {name: array.shape[2] if array.ndim > 2 else None for name, array in held_out.items()}
        if self.predict_on is not None:
            counts["predict_on"] = len(self.predict_on.y)
        if len(set(counts.values())) > 1:
            raise ValueError(f"the numbers of held-out data differ: {counts}")

    def __repr__(self) -> str:
        about = self.metadata
        lines = [
            f"Posterior of {about.get('model', 'a model')} by {about.get('kernel', 'an unknown kernel')} at "
            f"temperature {about.get('temperature', 1.0):g}: {self.num_chains} chains of {self.num_draws}"
        ]
        if "total_weight" in about:
            lines.append(f"  data: {about['num_data']} of total weight {about['total_weight']:g}")
        coreset = about.get("coreset")
        if coreset is not None and (note := mass_note(about["total_weight"], coreset["num_data"])):
            lines.append(f"  {note}")
        sites = [f"{name} {array.shape[2:]}" for name, array in self.draws.items()]
        more = f" and {len(sites) - 4} more" if len(sites) > 4 else ""
        lines.append(f"  draws: {', '.join(sites[:4]) or 'none kept'}{more}")
        if self.function_values is not None:
            lines.append(f"  function values: {self.function_values.shape}")
        if "seconds" in about:
            lines.append(f"  seconds: {about['seconds']['total']:.1f}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Evaluation:
    model: Model
    preprocessing: Any
    chunk_size: int


@functools.partial(jax.jit, static_argnums=0)
def _evaluate_block(
    evaluation: _Evaluation, stack: Params, rows: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array | None, jax.Array]:
    def one(params: Params) -> tuple[jax.Array | None, jax.Array]:
        f, log_likelihood = function_summary(
            evaluation.model,
            params,
            *rows,
            preprocessing=evaluation.preprocessing,
            chunk_size=evaluation.chunk_size,
        )
        return None if f is None else f.astype(jnp.float32), log_likelihood

    return map_stack(one, stack) if evaluation.model.is_network else jax.vmap(one)(stack)


def _restored_split(arrays: dict[str, np.ndarray], parts: dict[str, np.ndarray], metadata: Any) -> Split | None:
    if not arrays:
        return None
    from pseudocoreset.data import Preprocessing, Split

    layout = None if (metadata or {}).get("layout") is None else InputLayout.from_metadata(metadata["layout"])
    rest = {name: value for name, value in metadata.items() if name != "layout"}
    return Split(arrays["raw"], arrays["y"], Preprocessing.from_parts(parts, rest), layout)


def _split_metadata(split: Split) -> dict[str, Any]:
    """How the inputs of a split are preprocessed and laid out; without a layout what versions before it wrote."""
    layout = {} if split.layout is None else {"layout": split.layout.metadata()}
    return split.preprocessing.metadata() | layout


def split_arrays(split: Split) -> dict[str, np.ndarray]:
    """The arrays of a split, by the names they have in a file."""
    parts = {f"preprocessing/{name}": array for name, array in split.preprocessing.arrays().items()}
    return {"predict_on/raw": split.raw[:], "predict_on/y": split.y, **parts}


def flatten_groups(content: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of the fields of a posterior by one name each, ``group/site`` or the field's; without None."""
    flat: dict[str, Any] = {}
    for field, value in content.items():
        if isinstance(value, Mapping):
            flat |= {f"{field}/{name}": leaf for name, leaf in value.items()}
        elif value is not None:
            flat[field] = value
    return flat


def library_versions() -> dict[str, str]:
    """Versions of what the draws depend on."""
    from pseudocoreset import __version__

    names = ("jax", "jaxlib", "numpyro", "blackjax", "numpy")
    return {"pseudocoreset": __version__, **{name: _version(name) for name in names}}


_version = functools.cache(importlib.metadata.version)  # each looks through the files of all that is installed
