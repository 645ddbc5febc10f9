"""From a ``Posterior`` to an ``xarray.DataTree`` in ArviZ's layout."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.arguments import checked
from pseudocoreset.formatting import json_values
from pseudocoreset.inference.posterior.likelihoods import log_probability_blocks, observed, target_blocks
from pseudocoreset.inference.posterior.model import accepts_model, held_out, model_of
from pseudocoreset.rows import spread_indices
from pseudocoreset.validation import check_key

if TYPE_CHECKING:
    import xarray

    from pseudocoreset.coreset import Pseudocoreset
    from pseudocoreset.inference.posterior.draws import Posterior

__all__ = ["check_coreset", "to_arviz"]

_NETWORK_PREFIX = "network/"
_DIMENSIONS = ("chain", "draw")
_HELD_OUT = ("f", "probabilities", "input", "output", "class")  # what there is beside the sites, and its dimensions
_PREDICTIVE_STREAM = 2**31 - 1  # far from the streams that a sampler folds into the same key


@dataclasses.dataclass
class _Content:
    """What goes into a tree: arrays by group and name, names of their dimensions, coordinates."""

    groups: dict[str, dict[str, np.ndarray]]
    dims: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    coords: dict[str, Any] = dataclasses.field(default_factory=dict)

    def add(self, group: str, name: str, values: np.ndarray, dims: Sequence[str] | None = None) -> None:
        self.groups.setdefault(group, {})[name] = values
        if dims is not None:
            self.dims[name] = list(dims)


@accepts_model
@checked
def to_arviz(
    posterior: Posterior,
    *,
    max_inputs: int = 200,
    coreset: Pseudocoreset | None = None,
    include_weights: bool = False,
    key: jax.Array | None = None,
) -> xarray.DataTree:
    """Convert a posterior for ArviZ: diagnostics, plots, netCDF.

    Groups:

    * ``posterior``: draws of the latent sites (those of a network only with ``include_weights``), under their names;
      netCDF has no slash in names, so ``part/a`` is ``part.a``, and a name that is taken, by another site or by
      what this group holds besides, gets a number, ``part.a_1``. The attribute ``renamed_sites`` of the tree holds
      the names of the program, as JSON ``{new: old}``. Further ``f``, the
      function values, and ``probabilities``, both at held-out inputs. They are functions of the parameters,
      so R-hat, ESS, trace and rank plots apply to them, and for a network they are the quantities to look at.
    * ``posterior_predictive``: ``y``, one target drawn from the likelihood for each draw and held-out input,
      as ArviZ's predictive checks expect.
    * ``log_likelihood``: of the held-out targets. This is held-out data: average it, do not run LOO on it.
    * ``observed_data``: ``y``, the held-out targets, or what the model observes in their place.
    * ``constant_data``: the positions of the held-out inputs in their split, and the coreset's inputs, targets
      and weights when it is given.
    * ``sample_stats``: what the kernel reports.

    Args:
        posterior: What ``sample`` returned. Read from files without its model (``Posterior.load(path, model=model)``
            gives it), it has no probabilities and no ``posterior_predictive``.
        max_inputs: Held-out inputs kept, evenly spread over the split.
        coreset: The coreset that was sampled on.
        include_weights: Keep the weights of a network, when the posterior has them.
        key: A typed key for the targets in ``posterior_predictive``. Default: derived from the key of the
            sampling run, so that one posterior always gives one tree; a posterior that does not know its key
            has no such group.

    Returns:
        ``xarray.DataTree`` with named dimensions; ``tree.to_netcdf(path, engine="h5netcdf")`` writes it.

    Raises:
        ValueError: ``max_inputs`` below 1, or a ``coreset`` that was not sampled on.
    """
    import arviz_base

    if coreset is not None:
        check_coreset(coreset, [posterior.metadata])
    if max_inputs < 1:
        raise ValueError(f"max_inputs must be at least 1; got {max_inputs}")
    key = _run_key(posterior) if key is None else check_key(key)
    sites = {
        name: values
        for name, values in posterior.draws.items()
        if include_weights or not name.startswith(_NETWORK_PREFIX)
    }
    stored = _stored_names(sites, _DIMENSIONS if posterior.predict_on is None else _DIMENSIONS + _HELD_OUT)
    content = _Content(
        {
            "posterior": {new: sites[name] for name, new in stored.items()},
            "sample_stats": dict(posterior.sample_stats),
        }
    )
    inputs = np.arange(0)
    if posterior.predict_on is not None:
        inputs = spread_indices(posterior.predict_on.num_data, max_inputs)
    if posterior.function_values is not None:
        content.add("posterior", "f", posterior.function_values[:, :, inputs], ["input", "output"])
    if posterior.log_likelihood is not None:
        content.add("log_likelihood", "y", posterior.log_likelihood[:, :, inputs])
    if posterior.predict_on is not None:
        _add_held_out(content, posterior, inputs)
        if posterior.model is not None:
            _add_predictions(content, posterior, inputs, coreset, key)
    if coreset is not None:
        _add_coreset(content, coreset)
    tree = arviz_base.from_dict(
        {group: arrays for group, arrays in content.groups.items() if arrays},
        dims=content.dims,
        coords=content.coords,
        check_conventions=False,
    )
    tree.attrs.update(_attributes(posterior, coreset))
    renamed = {new: name for name, new in stored.items() if new != name}
    if renamed:
        tree.attrs["renamed_sites"] = json.dumps(renamed)
    return tree


def _add_held_out(content: _Content, posterior: Posterior, inputs: np.ndarray) -> None:
    """Which held-out inputs are shown, and what was observed there."""
    content.coords["input"] = inputs
    content.add("constant_data", "input_index", inputs, ["input"])
    y = held_out(posterior).y[inputs] if posterior.model is None else observed(posterior, inputs)
    if y is not None:
        content.add("observed_data", "y", np.asarray(y), ["input", *(f"y_dim_{axis}" for axis in range(1, y.ndim))])


def _add_predictions(
    content: _Content,
    posterior: Posterior,
    inputs: np.ndarray,
    coreset: Pseudocoreset | None,
    key: jax.Array | None,
) -> None:
    """Probabilities, and targets drawn from the likelihood."""
    num_classes = model_of(posterior).num_classes
    stack = (posterior.num_chains, posterior.num_draws)
    if num_classes is not None:
        logs = np.concatenate(list(log_probability_blocks(posterior, inputs=inputs)))
        probabilities = np.exp(logs).reshape((*stack, *logs.shape[1:]))
        content.add("posterior", "probabilities", probabilities, ["input", "class"])
        content.coords["class"] = _class_labels(num_classes, coreset)
    if key is not None:
        targets = np.concatenate(list(target_blocks(posterior, key, inputs=inputs)))
        content.add("posterior_predictive", "y", targets.reshape((*stack, *targets.shape[1:])))


def _add_coreset(content: _Content, coreset: Pseudocoreset) -> None:
    inputs: dict[str, np.ndarray] = {"inputs": coreset.inputs}
    if coreset.layout is not None:
        inputs = {f"inputs_{name}": leaf for name, leaf in coreset.layout.by_name(coreset.inputs).items()}
    arrays = inputs | {"targets": coreset.targets, "weights": coreset.weights}
    for short, leaf in arrays.items():
        name, array = f"coreset_{short}", np.asarray(leaf)
        content.add(
            "constant_data",
            name,
            array,
            ["coreset_point", *(f"{name}_dim_{axis}" for axis in range(1, array.ndim))],
        )


def _stored_names(draws: Mapping[str, np.ndarray], reserved: tuple[str, ...]) -> dict[str, str]:
    """The name of every site in the tree, each its own: a slash becomes a point, and what is taken gets a number.

    Names that need no change keep theirs, whatever the order of the sites.
    """
    taken = {*reserved, *(f"{name}_dim_{axis}" for name, array in draws.items() for axis in range(array.ndim - 2))}
    stored: dict[str, str] = {}
    for name in sorted(draws, key=lambda name: "/" in name):
        plain = name.replace("/", ".")
        new, number = plain, 0
        while new in taken:
            number += 1
            new = f"{plain}_{number}"
        taken.add(new)
        stored[name] = new
    return {name: stored[name] for name in draws}


def check_coreset(coreset: Pseudocoreset, settings: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a coreset that none of the posteriors was sampled on, by the metadata of those that know theirs."""
    known = {made["coreset"]["digest"] for made in settings if made.get("coreset")}
    if known and coreset.digest not in known:
        raise ValueError(
            f"coreset (objective {coreset.metadata.get('objective', 'unknown')!r}, {coreset.size} points) is not one "
            "that these posteriors were sampled on: its inputs or targets differ. Give theirs, or none"
        )


def _run_key(posterior: Posterior) -> jax.Array | None:
    record = posterior.metadata.get("key")
    if record is None:
        return None
    key = jax.random.wrap_key_data(jnp.asarray(record["data"], jnp.uint32), impl=record["implementation"])
    return jax.random.fold_in(key, _PREDICTIVE_STREAM)


def _class_labels(num_classes: int, coreset: Pseudocoreset | None) -> np.ndarray:
    names = None if coreset is None else coreset.class_names
    return np.arange(num_classes) if names is None or len(names) != num_classes else np.asarray(names, dtype=object)


def _attributes(posterior: Posterior, coreset: Pseudocoreset | None) -> dict[str, Any]:
    """Attributes that netCDF can hold: numbers, strings, and JSON for the rest; what is None is left out."""
    values: dict[str, Any] = {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "creation_library": "pseudocoreset",
    }
    values |= json_values(posterior.metadata)
    if coreset is not None:
        values |= {"coreset_mass": float(np.sum(coreset.weights, dtype=np.float64))}
        values |= {"coreset_metadata": json_values(coreset.metadata)}
    return {
        name: value if isinstance(value, int | float | str) and not isinstance(value, bool) else json.dumps(value)
        for name, value in values.items()
        if value is not None
    }
