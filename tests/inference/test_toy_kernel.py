"""A kernel in one file, this one, works everywhere: ``docs/add-a-kernel.md`` in code."""

from __future__ import annotations

import runpy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from pseudocoreset import Dataset
from pseudocoreset.compute.limits import limited
from pseudocoreset.data.sources.records import StoredImages
from pseudocoreset.diagnostics import calibrate
from pseudocoreset.files.checkpoints import Checkpointer
from pseudocoreset.inference import Posterior, sample
from pseudocoreset.inference.engine import TRACED, Kernel, per_chain, tempered
from pseudocoreset.inference.kernels import KERNELS, register
from pseudocoreset.models import MLP, bnn
from pseudocoreset.validation import check_positive
from tests.inference.statistics import FAILURE_RATE, POWER, exchangeability, gaussian_law, weakest_power
from tests.inference.targets import REGRESSION, evolve

KEY = jax.random.key(3)


class WalkState(NamedTuple):
    position: Any
    log_density: jax.Array


@dataclass(frozen=True, kw_only=True)
class RandomWalk(Kernel):
    """Random-walk Metropolis: a normal jump from where the chain is, accepted or not.

    Attributes:
        jump: standard deviation of a jump in units of the step size, positive.
        scales: of the jump by parameter, (d,); ones if None.
    """

    jump: float = 1.0
    scales: Any = field(default=None, metadata=TRACED)

    name = "random_walk"

    def __post_init__(self) -> None:
        self.settle(jump=check_positive(self.jump, "jump"))

    def default_step_size(self, plan, positions, total_weight):
        """Of use for a posterior as wide as one datum of unit weight makes it."""
        return 1.0 / np.sqrt(max(total_weight, 1.0))

    def tuning(self, run, positions, step_size):
        scales = np.ones(run.plan.model.num_params) if self.scales is None else np.asarray(self.scales)
        return per_chain({"scales": scales}, positions)

    def init(self, key, position, tuning, density):
        return WalkState(position, tempered(tuning, density)(position))

    def step(self, key, state, tuning, density, rows):
        jump_key, accept_key = jax.random.split(key)
        flat, unravel = ravel_pytree(state.position)
        jump = self.jump * tuning["step_size"] * tuning["scales"] * jax.random.normal(jump_key, flat.shape, flat.dtype)
        moved = unravel(flat + jump)
        value = tempered(tuning, density)(moved)
        change = jnp.nan_to_num(value - state.log_density, nan=-jnp.inf)
        rate = jnp.exp(jnp.minimum(change, 0.0))
        accepted = self.accepts(accept_key, rate)
        new = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), WalkState(moved, value), state)
        return new, {"lp": new.log_density * tuning["temperature"], "acceptance_rate": rate, "n_steps": jnp.int32(1)}

    def accepts(self, key, rate):
        return jax.random.uniform(key, dtype=rate.dtype) < rate

    def reported(self, tuning):
        return {**super().reported(tuning), "scales": None if self.scales is None else "given"}


@dataclass(frozen=True, kw_only=True)
class Generous(RandomWalk):
    """A mistake: proposals are accepted with the root of their probability."""

    name = "generous"

    def accepts(self, key, rate):
        return super().accepts(key, jnp.sqrt(rate))


@dataclass(frozen=True, kw_only=True)
class Ascent(Kernel):
    """Steps along gradients of minibatches, which says where it was unsure; no sampler."""

    name = "ascent"
    uses_minibatches = True

    def init(self, key, position, tuning, density):
        return WalkState(position, jnp.zeros(()))

    def step(self, key, state, tuning, density, rows):
        gradient = density.gradient(state.position, rows)
        moved = jax.tree.map(lambda q, g: q + tuning["step_size"] * g, state.position, gradient)
        unsure = jax.random.bernoulli(key, 0.2)
        return WalkState(moved, state.log_density), {"diverging": unsure, "n_steps": jnp.int32(1)}


@dataclass(frozen=True, kw_only=True)
class Onlooker(Ascent):
    """Looks at all data, which are not there where they are on disk."""

    name = "onlooker"

    def step(self, key, state, tuning, density, rows):
        return super().step(key, state, tuning, density, density.data._replace())


class OnDisk(StoredImages):
    """Images that are said to be on disk."""

    fingerprint = "0123456789abcdef"

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    shape = property(lambda self: self.images.shape)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]

    def stream(self, parts):
        return (self.images[part] for part in parts)


def run(kernel: str | Kernel, **settings: Any) -> Posterior:
    settings = {"num_chains": 2, "num_warmup": 20, "num_samples": 40, "thinning": 3, **settings}
    return sample(REGRESSION.model, REGRESSION.data, kernel=kernel, key=KEY, progress=False, **settings)


def assert_same(posterior: Posterior, other: Posterior) -> None:
    np.testing.assert_array_equal(posterior.draws[REGRESSION.site], other.draws[REGRESSION.site])
    assert posterior.sample_stats.keys() == other.sample_stats.keys()
    for name, values in posterior.sample_stats.items():
        np.testing.assert_array_equal(values, other.sample_stats[name], err_msg=name)


def walked(kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
    """Exact draws at temperature 0.3, and where they are twelve steps later."""
    starts = REGRESSION.draw(0, 4000, 0.3)
    return starts, evolve(
        kernel=kernel, target=REGRESSION, temperature=0.3, starts=starts, num_steps=12, step_size=0.08
    )


def law(draws: np.ndarray) -> float:
    return gaussian_law(draws, REGRESSION.mean, 0.3 * REGRESSION.covariance)


def test_it_keeps_the_posterior() -> None:
    starts, ends = walked(RandomWalk())
    assert np.mean(np.any(np.abs(ends - starts) > 1e-3, axis=1)) > 0.9
    assert law(ends) > FAILURE_RATE
    assert exchangeability(starts, ends) > FAILURE_RATE
    deviation = np.sqrt(0.3 * np.diag(REGRESSION.covariance))
    assert weakest_power(law, ends, REGRESSION.mean, deviation) > POWER


def test_a_mistake_in_it_is_found() -> None:
    assert law(walked(Generous())[1]) < FAILURE_RATE


def test_its_options_and_statistics_are_those_of_the_posterior() -> None:
    posterior = run(RandomWalk(jump=0.5, scales=[1.0, 2.0, 1.0, 1.0]))
    assert posterior.metadata["kernel"] == "random_walk"
    assert posterior.metadata["options"] == {"jump": 0.5, "scales": "given"}
    assert posterior.metadata["step_size"] == pytest.approx([30**-0.5] * 2)
    assert set(posterior.sample_stats) == {"lp", "acceptance_rate", "n_steps"}
    assert np.all(posterior.sample_stats["n_steps"] == 3)
    x, y = map(jnp.asarray, REGRESSION.data)
    for chain, draw in ((0, 0), (1, 39)):
        params = {name: leaf[chain, draw] for name, leaf in posterior.unconstrained.items()}
        wanted = REGRESSION.model.log_prior(params) + REGRESSION.model.log_likelihood(params, x, y).sum()
        assert posterior.sample_stats["lp"][chain, draw] == pytest.approx(float(wanted), rel=1e-5)


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, save, calls = RandomWalk(scales=np.full(4, 0.5)), Checkpointer.save, []

    def stopping(self, *args):
        save(self, *args)
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(kernel, directory=tmp_path)
    for other in (RandomWalk(scales=np.full(4, 0.6)), RandomWalk(jump=2.0, scales=np.full(4, 0.5))):
        with pytest.raises(ValueError, match=r"another run.*options: saved"):
            run(other, directory=tmp_path)
    assert_same(run(kernel, directory=tmp_path), run(kernel))
    assert_same(Posterior.load(tmp_path), run(kernel))


def test_it_is_known_by_its_name_once_it_is_registered() -> None:
    with pytest.raises(ValueError, match="kernel='random_walk' is unknown"):
        run("random_walk")
    register(RandomWalk)
    try:
        assert_same(run("random_walk", jump=0.5), run(RandomWalk(jump=0.5)))
        with pytest.raises(ValueError, match="no option 'friction'; its options are: jump, scales"):
            run("random_walk", friction=1.0)
        with pytest.raises(TypeError, match="jump must be a number; got str 'far'"):
            run("random_walk", jump="far")
        with pytest.raises(ValueError, match="there is a kernel 'random_walk' already"):
            register(RandomWalk)
    finally:
        del KERNELS["random_walk"]


@pytest.mark.filterwarnings("ignore:successive draws")  # ten simulations say nothing of them
def test_simulation_based_calibration_takes_it() -> None:
    found = calibrate(
        REGRESSION.model, REGRESSION.data[0], kernel=RandomWalk(), num_simulations=10, num_draws=9, num_warmup=50,
        thinning=20, step_size=0.1, key=KEY,
    )  # fmt: skip
    assert found.metadata["kernel"] == "random_walk"
    assert np.all(np.isfinite(found.means))


@pytest.mark.filterwarnings("ignore:.* draws come from divergent transitions")
def test_minibatches_come_from_memory_or_disk() -> None:
    """With the same draws, and statistics of all steps of a draw, in however many pieces its rows are read."""
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1)).astype(np.uint8)
    memory = Dataset.from_arrays(images, np.arange(40) % 2, test=(images[:4], np.arange(4) % 2))
    object.__setattr__(stored := Dataset(**vars(memory)), "train", _on_disk(memory.train))
    settings = {
        "kernel": Ascent(), "num_chains": 2, "num_warmup": 3, "num_samples": 5, "thinning": 4, "batch_size": 6,
        "step_size": 1e-3, "keep": "weights", "key": KEY, "progress": False,
    }  # fmt: skip
    model = bnn(MLP((4,)), memory)
    here = sample(model, memory, **settings)
    there = sample(model, stored, **settings)
    with limited(streamed_bytes=3 * 2 * 6 * 16):
        pieces = sample(model, stored, **settings)
    with pytest.raises(AttributeError, match=r"on disk.*no density\.data"):
        sample(model, stored, **{**settings, "kernel": Onlooker()})
    assert np.any(here.sample_stats["diverging"])
    assert not np.all(here.sample_stats["diverging"])
    for other in (there, pieces):
        np.testing.assert_array_equal(other.sample_stats["diverging"], here.sample_stats["diverging"])
        np.testing.assert_array_equal(other.sample_stats["n_steps"], np.full((2, 5), 4))
        for name, leaf in here.unconstrained.items():
            np.testing.assert_allclose(other.unconstrained[name], leaf, rtol=1e-4, atol=1e-5)


def _on_disk(split):
    changed = type(split)(**vars(split))
    object.__setattr__(changed, "raw", OnDisk(np.asarray(split.raw)))
    return changed


def skeleton_of_the_page(number: int, folder: Path, name: str) -> type[Any]:
    page = Path(__file__).parents[2] / "docs" / "add-a-kernel.md"
    (folder / "page.py").write_text(page.read_text().split("```python\n")[number].split("```")[0])
    return runpy.run_path(str(folder / "page.py"))[name]


def test_the_option_of_the_page_works(tmp_path: Path) -> None:
    few = {"num_warmup": 3, "num_samples": 4, "thinning": 1, "step_size": 0.01}
    try:
        clipped = skeleton_of_the_page(2, tmp_path, "ClippedSGHMC")
        loose = run("clipped_sghmc", max_grad_norm=1e9, **few)
        still = {
            "num_warmup": 0,
            "num_samples": 1,
            "temperature": 1e-9,
            "init_params": {REGRESSION.site: np.full(4, 5.0)},
        }
        tight = run(clipped(max_grad_norm=2.0), **{**few, **still, "step_size": 0.05})
        with pytest.raises(ValueError, match="max_grad_norm must be a positive number; got -1"):
            run("clipped_sghmc", max_grad_norm=-1.0, **few)
    finally:
        KERNELS.pop("clipped_sghmc", None)
    assert loose.metadata["options"]["max_grad_norm"] == 1e9
    np.testing.assert_allclose(loose.draws[REGRESSION.site], run("sghmc", **few).draws[REGRESSION.site], rtol=1e-5)
    # Two halves of a step with a momentum of h g, then of 0.9 h g.
    moved = np.linalg.norm(tight.draws[REGRESSION.site][:, 0] - 5.0, axis=-1)
    np.testing.assert_allclose(moved, 0.05**2 / 2 * (1 + 0.9) * 2.0, rtol=0.01)


def test_the_skeleton_of_the_page_works(tmp_path: Path) -> None:
    try:
        skeleton = skeleton_of_the_page(1, tmp_path, "RandomWalk")
        found = run("random_walk", jump=0.5, step_size=0.1)
    finally:
        KERNELS.pop("random_walk", None)
    assert found.metadata["options"] == {"jump": 0.5}
    assert_same(found, run(skeleton(jump=0.5), step_size=0.1))
    other = run(RandomWalk(jump=0.5), step_size=0.1)
    np.testing.assert_allclose(found.draws[REGRESSION.site], other.draws[REGRESSION.site], rtol=1e-3, atol=1e-4)


def test_kernels_that_do_not_fit_are_refused() -> None:
    @dataclass(frozen=True)
    class Unhashable(RandomWalk):
        table: Any = None

    class NoDataclass(Kernel):
        name = "no_dataclass"
        init = step = None

    @dataclass(frozen=True)
    class Impostor(RandomWalk):
        name = "nuts"

    @dataclass(frozen=True)
    class Careless(RandomWalk):
        name = "careless"

        def accepts(self, key, rate):
            return rate > 0.5 * self.scales

    with pytest.raises(TypeError, match=r"table of kernel 'random_walk' cannot be hashed.*TRACED"):
        run(Unhashable(table=[1.0]))
    with pytest.raises(TypeError, match=r"NoDataclass must be a frozen dataclass.*add-a-kernel"):
        run(NoDataclass())
    with pytest.raises(ValueError, match="Impostor has the name 'nuts' of another kernel"):
        run(Impostor())
    with pytest.raises(TypeError, match="ValueIsInTuning"):
        run(Careless())
    with pytest.raises(ValueError, match="'jump': kernel is a RandomWalk, which holds its own options"):
        run(RandomWalk(), jump=2.0)
    with pytest.raises(ValueError, match="kernel 'ascent' neither adapts a step size nor has a default"):
        run(Ascent())
    with pytest.raises(ValueError, match="jump must be a positive number"):
        RandomWalk(jump=-1.0)
