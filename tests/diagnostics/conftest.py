"""Posteriors small enough to check by hand, and one real run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset, Preprocessing, Split
from pseudocoreset.inference import Posterior, sample
from pseudocoreset.models import MLP, Model, bnn


def softmax_program(x: jax.Array, y: jax.Array | None = None) -> None:
    """Three classes; the scale multiplies the function values, so it acts on the likelihood beside them."""
    weights = numpyro.sample("weights", dist.Normal(0, 1).expand((x.shape[1], 3)).to_event(2))
    scale = numpyro.sample("scale", dist.LogNormal(0, 1))
    f = numpyro.deterministic("f", x @ weights)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=scale * f), obs=y)


def linear_program(x: jax.Array, y: jax.Array | None = None) -> None:
    weights = numpyro.sample("weights", dist.Normal(0, 1).expand((x.shape[1],)).to_event(1))
    noise = numpyro.sample("noise", dist.LogNormal(0, 1))
    f = numpyro.deterministic("f", x @ weights)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, noise), obs=y)


def poisson_program(x: jax.Array, y: jax.Array | None = None) -> None:
    weights = numpyro.sample("weights", dist.Normal(0, 1).expand((x.shape[1],)).to_event(1))
    f = numpyro.deterministic("f", x @ weights)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Poisson(jnp.exp(f)), obs=y)


def functionless_program(x: jax.Array, y: jax.Array | None = None) -> None:
    weights = numpyro.sample("weights", dist.Normal(0, 1).expand((x.shape[1],)).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=x @ weights), obs=y)


def make_split(x: Any, y: Any) -> Split:
    return Split(np.asarray(x, np.float32), np.asarray(y), Preprocessing())


def make_posterior(
    model: Model,
    split: Split,
    unconstrained: dict[str, np.ndarray],
    *,
    keeps_weights: bool = True,
    sample_stats: dict[str, np.ndarray] | None = None,
    metadata: dict[str, Any] | None = None,
) -> Posterior:
    """A posterior whose draws are given, `(chain, draw, ...)` by site, evaluated on `split`."""
    model = model.bind(split.x, split.y)
    shape = next(iter(unconstrained.values())).shape[:2]
    draws = jax.vmap(jax.vmap(model.constrain))(unconstrained)
    empty = Posterior(
        draws={name: np.asarray(values) for name, values in draws.items()},
        function_values=None,
        log_likelihood=None,
        sample_stats={"lp": np.zeros(shape)} if sample_stats is None else sample_stats,
        predict_on=None,
        metadata={} if metadata is None else metadata,
        unconstrained={name: np.asarray(values, np.float32) for name, values in unconstrained.items()},
        model=model,
    )
    evaluated = empty.evaluate(split)
    return evaluated if keeps_weights else without_weights(evaluated)


def without_weights(posterior: Posterior) -> Posterior:
    kept = {name: getattr(posterior, name) for name in posterior.__dataclass_fields__}
    return Posterior(**{**kept, "unconstrained": None})


def random_draws(
    model: Model, split: Split, seed: int, num_chains: int = 4, num_draws: int = 50, spread: float = 0.3
) -> dict[str, np.ndarray]:
    """Draws around one random point, the same for every seed."""
    model = model.bind(split.x, split.y)
    centre = model.init(jax.random.key(7))
    random = np.random.default_rng(seed)
    return {
        name: np.asarray(value) + spread * random.standard_normal((num_chains, num_draws, *value.shape))
        for name, value in centre.items()
    }


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """The functions and programs of this file, for tests."""
    return SimpleNamespace(
        functionless=functionless_program,
        linear=linear_program,
        make_posterior=make_posterior,
        make_split=make_split,
        poisson=poisson_program,
        random_draws=random_draws,
        softmax=softmax_program,
        without_weights=without_weights,
    )


@pytest.fixture(scope="session")
def softmax() -> tuple[Model, Split]:
    random = np.random.default_rng(0)
    x = random.standard_normal((60, 2))
    split = make_split(x, random.integers(0, 3, 60).astype(np.int32))
    return Model.from_numpyro(softmax_program).bind(split.x, split.y), split


@pytest.fixture(scope="session")
def softmax_posterior(softmax: tuple[Model, Split]) -> Posterior:
    return make_posterior(*softmax, random_draws(*softmax, seed=1))


@pytest.fixture(scope="session")
def images() -> Dataset:
    """Three classes of 6 x 6 grey images, told apart by which third is bright."""
    random = np.random.default_rng(3)
    y = np.tile(np.arange(3), 30)
    x = random.integers(0, 120, (90, 6, 6, 1))
    for row, label in enumerate(y):
        x[row, 2 * label : 2 * label + 2] += 110
    x = x.astype(np.uint8)
    names = ["top", "<middle>", "bottom & last"]
    return Dataset.from_arrays(x[:60], y[:60], test=(x[60:], y[60:]), normalize=True, class_names=names)


@pytest.fixture(scope="session")
def network(images: Dataset) -> Model:
    return bnn(MLP(widths=(8,)), images)


@pytest.fixture(scope="session")
def coreset(images: Dataset) -> Pseudocoreset:
    return Pseudocoreset.from_data(images, images_per_class=2, key=jax.random.key(0))


@pytest.fixture(scope="session")
def run(images: Dataset, network: Model, coreset: Pseudocoreset) -> dict[str, Posterior]:
    """A short run of a small network, function values only, and made-up draws for the full posterior."""
    sampled = sample(
        network,
        coreset,
        key=jax.random.key(1),
        predict_on=images.test,
        num_chains=2,
        num_warmup=20,
        num_samples=40,
        step_size=0.02,
        progress=False,
    )
    assert images.test is not None
    draws = random_draws(network, images.test, seed=1, num_chains=2, num_draws=40)
    metadata = {"kernel": "none", "temperature": 0.5, "total_weight": 60.0, "num_data": 60}
    return {"coreset": sampled, "full": make_posterior(network, images.test, draws, metadata=metadata)}
