"""``Posterior``: draws, sample statistics, function values on held-out data, their model, and what produced them."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.arguments import checked
from pseudocoreset.compute.devices import Devices
from pseudocoreset.compute.limits import limits
from pseudocoreset.coreset import mass_note
from pseudocoreset.data.doors import bind_to_rows, check_preprocessing
from pseudocoreset.files.schema import fits_together
from pseudocoreset.files.storage import (
    atomic_directory,
    map_arrays,
    read_arrays,
    read_json,
    verify,
    write_arrays,
    write_json,
)
from pseudocoreset.inference.data import function_summary, held_out_chunk_size
from pseudocoreset.inference.posterior.arviz import to_arviz
from pseudocoreset.inference.posterior.files import (
    ARRAYS_FILE,
    GROUPS,
    RECORD_FILE,
    SINGLE_ARRAYS,
    check_posterior_record,
    flatten_groups,
    record_of,
    restored_split,
    split_arrays,
)
from pseudocoreset.inference.posterior.model import accepts_model, attached, check_is_of, model_of
from pseudocoreset.inference.validation import resolve_predict_on, stored_inputs
from pseudocoreset.models import Model, Params
from pseudocoreset.rows import ModelInputs

if TYPE_CHECKING:
    import xarray

    from pseudocoreset.data import Split

__all__ = ["Posterior"]


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
        model: the bound model that the draws are of. ``sample`` gives it; files and pickles do not hold it, so that a
            posterior from there has None until it is given its model: ``Posterior.load(path, model=model)``, or
            ``posterior.with_model(model)``.
    """

    draws: dict[str, np.ndarray]
    function_values: np.ndarray | None
    log_likelihood: np.ndarray | None
    sample_stats: dict[str, np.ndarray]
    predict_on: Split | None
    metadata: dict[str, Any]
    unconstrained: dict[str, np.ndarray] | None
    model: Model | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "model": None}  # a program is code, and mostly a closure

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
    def with_model(self, model: Model) -> Posterior:
        """The same draws, which know their model: for posteriors that were read from files.

        Args:
            model: the model that was sampled.

        Raises:
            ValueError: if the draws are of another model, by its name or its sites.
        """
        return attached(model, self)

    @accepts_model
    @checked
    def evaluate(self, split: Any) -> Posterior:
        """The same draws with function values and log-likelihoods on another split.

        Args:
            split: ``Split``, or ``(x, y)``.

        Raises:
            ValueError: if the weights were not kept, the model is not known or has other sites, or the split was
                preprocessed otherwise than the data that were sampled on.
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
        model, targets = bind_to_rows(model_of(self), ModelInputs.of(split), split.y, "split", takes_soft=False)
        check_preprocessing(
            self.metadata.get("preprocessing"),
            split.preprocessing.summary,
            "what this posterior was sampled on",
            "split",
            "Load both alike, or give (x, y) with x as the model is to see them",
        )
        check_is_of(self, model)
        total = self.num_chains * self.num_draws
        flat = {name: array.reshape(total, *array.shape[2:]) for name, array in self.unconstrained.items()}
        rows = (jnp.asarray(inputs), jnp.asarray(targets))
        evaluation = _Evaluation(model, preprocessing, held_out_chunk_size(model, inputs.shape[1:]))
        width = (model.num_outputs or 0) + 1
        block = max(1, min(total, 64, limits().block_bytes // (4 * width * len(inputs))))
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

    @accepts_model
    @checked
    def with_deterministic(self) -> Posterior:
        """The same draws with those of the deterministic sites of the program that all data share.

        Sites with an entry per datum, as ``"f"``, are not among them: ``evaluate`` gives those.

        Raises:
            ValueError: if the weights were not kept, or the model is not known or not bound.
        """
        if self.unconstrained is None:
            raise ValueError("the weights of this posterior were not kept; sample with keep='weights'")
        model = model_of(self)
        check_is_of(self, model)
        every = jax.jit(jax.vmap(jax.vmap(lambda params: model.constrain(params, True))))(self.unconstrained)
        more = {name: np.asarray(leaf) for name, leaf in every.items() if name not in self.unconstrained}
        return replace(self, draws={**self.draws, **more})

    @checked
    def to_arviz(self, *args: Any, **kwargs: Any) -> xarray.DataTree:
        """As an ArviZ ``DataTree``; see ``pseudocoreset.diagnostics.to_arviz``."""
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
            write_json(folder / RECORD_FILE, record_of(self.metadata, self.predict_on))

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
            predict_on=restored_split(groups["predict_on"], groups["preprocessing"], preprocessing),
            metadata=metadata,
            unconstrained=groups["unconstrained"] or None,
        )

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str], *, memory_map: bool = False, model: Model | None = None) -> Posterior:
        """Read what ``save`` wrote, verified.

        Args:
            path: the directory.
            memory_map: leave the arrays on disk, to be read where they are used.
            model: the model that was sampled, which files do not hold; ``with_model`` gives it later.

        Raises:
            FileNotFoundError: if there is nothing at ``path``.
            CorruptFileError: if a file is missing, truncated or altered, or holds something else.
            ValueError: if a newer version of this package wrote it, or it is of another model.
        """
        folder = verify(path, RECORD_FILE, ARRAYS_FILE)
        place = folder / RECORD_FILE
        record = check_posterior_record(read_json(place), place)
        arrays = (map_arrays if memory_map else read_arrays)(folder / ARRAYS_FILE)
        with fits_together(folder):
            posterior = cls.from_flat(arrays, record["metadata"], record["preprocessing"])
            posterior._check_shapes()
        return posterior if model is None else attached(model, posterior, f"the posterior in {path}")

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

    return Devices().for_draws_of(evaluation.model).map(one, stack)
