"""What the methods share that choose real data."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.coreset import MASSES, Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.data.doors import bind_to
from pseudocoreset.experts import fingerprint
from pseudocoreset.fitting import FitResult, Outcome
from pseudocoreset.levels import warn_of_missing_levels
from pseudocoreset.methods.common import as_models
from pseudocoreset.methods.keeping import keep_better
from pseudocoreset.models import Model
from pseudocoreset.objectives import InnerTraining
from pseudocoreset.objectives.posteriors import NO_REMEDY, Posteriors, bind_posteriors
from pseudocoreset.proxies.laplace import DENSE_LIMIT
from pseudocoreset.validation import check_choice, check_integer, key_record

__all__ = ["beside_random", "finish", "gaussian_posteriors", "mass_of", "one_model", "quota_of", "ratio", "subset_of"]

Models = Model | Sequence[Model]


def mass_of(model: Models, data: Dataset, weights: str | None) -> str:
    """``weights``, or what suits the models, which must fit the data; their programs are not run."""
    models = tuple(bind_to(one, data, check=False) for one in as_models(model))
    if weights is None:
        return "ones" if all(m.is_network for m in models) else "data"
    return check_choice(weights, "weights", MASSES)


def one_model(model: Model, data: Dataset) -> Model:
    """The model, bound; several are refused."""
    if not isinstance(model, Model):
        raise TypeError(f"model must be one Model, whose log-likelihoods choose the points; got {model!r}")
    return bind_to(model, data)


def gaussian_posteriors(model: Model, proxy: str | None, argument: str) -> Posteriors:
    """The posteriors of a model that are Gaussian in closed form."""
    if proxy is not None:
        check_choice(proxy, argument, ("conjugate", "laplace"))
    given = "posterior= a Gaussian of draws of the posterior, or " if argument == "posterior" else ""
    posteriors = bind_posteriors(model, proxy, InnerTraining(), wants_data=False, remedy=given + NO_REMEDY)
    if posteriors.gaussians is None:
        raise ValueError(
            f"{argument} must be a conjugate posterior or a dense Laplace approximation, for models of at most "
            f"{DENSE_LIMIT} parameters; {model.name!r} has {model.num_params}, and networks have none unless asked for"
        )
    return posteriors


def quota_of(data: Dataset, images_per_class: int | None, size: int | None) -> tuple[np.ndarray, int]:
    """Group (n,) of every datum, its class or 0, and how many points there may be of each."""
    if (images_per_class is None) == (size is None):
        raise ValueError(f"give one of images_per_class and size; got {images_per_class} and {size}")
    if size is not None:
        if check_integer(size, "size") > data.train.num_data:
            raise ValueError(f"size={size} is more than the {data.train.num_data} training data")
        return np.zeros(data.train.num_data, np.int32), size
    count = check_integer(images_per_class, "images_per_class")
    if data.num_classes is None:
        raise ValueError("images_per_class needs classes; these targets are real numbers, give size instead")
    members = np.bincount(data.train.y, minlength=data.num_classes)
    if members.min() < count:
        label = int(members.argmin())
        raise ValueError(f"images_per_class={count}, but class {label} has {members[label]} training data")
    return data.train.y, count


def subset_of(data: Dataset, indices: np.ndarray, weights: np.ndarray) -> Pseudocoreset:
    """The training data at ``indices``, weighted."""
    return Pseudocoreset(
        inputs=np.asarray(data.preprocessing.apply(data.train.raw[indices]), np.float32),
        targets=np.asarray(data.train.y[indices]),
        weights=np.asarray(weights, np.float32),
        preprocessing=data.preprocessing,
        layout=data.train.layout,
        num_data=data.train.num_data,
        class_names=data.class_names,
        metadata={"indices": indices.tolist()},
        holds_probabilities=False if data.train.y.ndim == 2 else None,
    )


def finish(
    coreset: Pseudocoreset,
    name: str,
    data: Dataset,
    images_per_class: int | None,
    key: jax.Array,
    settings: dict[str, Any],
    history: dict[str, np.ndarray],
    began: float,
) -> FitResult:
    """A coreset with the record of how it was made, as a ``FitResult``."""
    record = {
        "objective": name,
        "settings": settings,
        "data": data.name,
        "data_fingerprint": fingerprint(data),
        "images_per_class": images_per_class,
        "key": key_record(key),
        "versions": {library: importlib.metadata.version(library) for library in ("jax", "numpyro")},
    }
    coreset = replace(coreset, metadata=coreset.metadata | record)
    warn_of_missing_levels(coreset, data)
    return FitResult(coreset, history, Outcome.COMPLETED, None, time.perf_counter() - began)


def beside_random(
    result: FitResult,
    model: Models,
    data: Dataset,
    images_per_class: int | None,
    size: int | None,
    key: jax.Array,
    mass: str = "data",
) -> FitResult:
    """``result`` with its distance from the posterior of all data, and that of random points of the same number.

    The coreset stays what the method chose; where the random points are nearer a warning and the text of the result say
    so (``keep_better``).

    Args:
        result: with the coreset that was chosen.
        model: one, or several.
        data: the data set.
        images_per_class: points of each class, as asked for.
        size: number of points in all, as asked for.
        key: of the fit.
        mass: of the coreset; one of ones has another posterior than all data, and is left as it is.
    """
    models = tuple(bind_to(one, data) for one in as_models(model))
    if mass == "ones" or all(one.is_network for one in models):
        return result
    random = None
    if result.coreset.metadata["objective"] != "random":
        random = Pseudocoreset.from_data(
            data, images_per_class=images_per_class, size=size, key=jax.random.fold_in(key, 1), mass="data"
        )
    return keep_better(result, models, data, random, "random subset", replaces=False)


def ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """A quotient that is zero where the denominator is not positive."""
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1.0), 0.0)
