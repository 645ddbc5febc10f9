"""The optimisation loop: it improves coresets, resumes to the same bits, survives bad steps, refuses bad input."""

import dataclasses
import inspect
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from pseudocoreset import Dataset, Experts, Pseudocoreset, fit_fbpc, load_dataset, train_experts
from pseudocoreset.files.checkpoints import Checkpointer
from pseudocoreset.files.storage import CorruptFileError
from pseudocoreset.fitting import optimise
from pseudocoreset.fitting.outcome import Outcome, find_rise
from pseudocoreset.methods.fbpc import fbpc_recipe
from pseudocoreset.models import MLP, ConvNet, Model, bnn, logistic_regression
from pseudocoreset.objectives import Objective, function_kl

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 4)).astype(np.float32)
Y = (np.arange(90) % 3).astype(np.int32)
X[np.arange(90), Y] += 1.5
DATA = Dataset.from_arrays(X, Y)
MODEL = bnn(MLP((8,)), DATA)


@pytest.fixture(scope="module")
def experts():
    return train_experts(
        MODEL,
        DATA,
        num_experts=2,
        num_epochs=5,
        learning_rate=0.3,
        batch_size=15,
        key=jax.random.key(0),
        progress=False,
    )


def fbpc(experts, model=MODEL, **changes):
    arguments = dict(
        images_per_class=1, key=jax.random.key(1), steps=6, experts=experts, proxy="isotropic", step_size=1.0,
        inner_loss=0.4, inner_learning_rate=0.05, inner_max_steps=60, num_draws=4, progress=False,
    )  # fmt: skip
    return fit_fbpc(model, DATA, **{**arguments, **changes})


def test_fbpc_lowers_the_loss_of_the_experts(experts):
    start = Pseudocoreset.from_data(DATA, images_per_class=1, key=jax.random.key(3))
    result = fbpc(experts, steps=40, step_size=20.0, proxy="trajectory", coreset=start, images_per_class=None)

    def loss(coreset):
        """Mean over all snapshots that may be drawn."""
        snapshots = [experts.snapshot(i, epoch) for i in range(2) for epoch in range(1, 6)]
        return -np.mean([MODEL.log_likelihood(p, coreset.inputs, coreset.targets) for p in snapshots])

    assert result.outcome is Outcome.COMPLETED
    assert {len(values) for values in result.history.values()} == {40}
    assert loss(result.coreset) < 0.7 * loss(start)
    assert result.coreset.metadata["objective"] == "fbpc"
    assert result.coreset.metadata["steps_done"] == 40


def test_the_same_key_gives_the_same_bits(experts):
    one, other = fbpc(experts), fbpc(experts)
    np.testing.assert_array_equal(one.coreset.inputs, other.coreset.inputs)
    assert not np.array_equal(one.coreset.inputs, fbpc(experts, key=jax.random.key(2)).coreset.inputs)


def test_several_models_add_up_their_gradients(experts):
    wide = bnn(MLP((12,)), DATA)
    wide_experts = train_experts(
        wide,
        DATA,
        num_experts=2,
        num_epochs=5,
        learning_rate=0.3,
        batch_size=15,
        key=jax.random.key(5),
        progress=False,
    )
    result = fbpc([experts, wide_experts], model=[MODEL, wide], steps=1)
    assert {"loss_0", "loss_1", "gradient_norm"} <= result.history.keys()
    start = Pseudocoreset.from_data(DATA, images_per_class=1, key=jax.random.key(3))

    def move(models, sets):
        sgd = {"optimizer": optax.sgd(10.0), "step_size": None}
        settings = {"steps": 1, "images_per_class": None, "coreset": start, **sgd}
        return fbpc(sets, model=models, **settings).coreset.inputs - start.inputs

    alone = move([MODEL], [experts])
    both = move([MODEL, MODEL], [experts, experts])
    assert np.linalg.norm(alone) > 0
    # The two use different keys, so the second is not the first twice; it is a sum, not a mean.
    assert np.linalg.norm(both) > 1.2 * np.linalg.norm(alone)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    """SIGKILL at a random moment between checkpoints; the second process ends where an undisturbed one does."""
    script = textwrap.dedent(
        """
        import os, signal, sys, jax, numpy as np
        from pseudocoreset import fit_fbpc, load_dataset, train_experts
        from pseudocoreset.models import MLP, bnn
        data = load_dataset("digits")
        model = bnn(MLP((8,)), data)
        experts = train_experts(model, data, num_experts=1, num_epochs=2, batch_size=100, key=jax.random.key(0),
                                directory=sys.argv[1] + "/experts", progress=False)
        kill = int(sys.argv[3])
        def callback(step, coreset, info):
            if step == kill:
                os.kill(os.getpid(), signal.SIGKILL)
        result = fit_fbpc(model, data, images_per_class=1, key=jax.random.key(1), steps=40, experts=experts,
                          proxy="isotropic", inner_max_steps=5, step_size=10.0, progress=False, callbacks=[callback],
                          checkpoint_dir=sys.argv[2])
        np.savez(sys.argv[2] + "/result.npz", inputs=result.coreset.inputs, **result.history)
        """
    )

    def run(folder, kill):
        command = [sys.executable, "-c", script, str(tmp_path), str(tmp_path / folder), str(kill)]
        return subprocess.run(command, check=False, env={**os.environ, "JAX_PLATFORMS": "cpu"}).returncode

    assert run("whole", -1) == 0
    assert run("killed", 30) == -signal.SIGKILL
    assert run("killed", -1) == 0
    whole, killed = (np.load(tmp_path / name / "result.npz") for name in ("whole", "killed"))
    assert set(whole) == set(killed)
    for name in whole:
        np.testing.assert_array_equal(whole[name], killed[name])


def test_a_damaged_checkpoint_is_passed_over_and_another_run_refused(experts, tmp_path):
    whole = fbpc(experts, steps=30)
    stop_at_20 = [lambda step, coreset, info: step == 20]
    stopped = fbpc(experts, steps=30, checkpoint_dir=tmp_path, callbacks=stop_at_20)
    assert stopped.outcome is Outcome.STOPPED
    newest = sorted(tmp_path.glob("step-*"))[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-3])
    resumed = fbpc(experts, steps=30, checkpoint_dir=tmp_path)
    np.testing.assert_array_equal(resumed.coreset.inputs, whole.coreset.inputs)
    np.testing.assert_array_equal(resumed.history["loss"], whole.history["loss"])
    with pytest.raises(ValueError, match=r"another run.*key"):
        fbpc(experts, steps=30, checkpoint_dir=tmp_path, key=jax.random.key(9))
    for folder in tmp_path.glob("step-*"):
        (folder / "state.safetensors").write_bytes(b"")
    with pytest.raises(CorruptFileError, match="remove the directory"):
        fbpc(experts, steps=30, checkpoint_dir=tmp_path)


def test_two_processes_do_not_share_a_directory(tmp_path):
    with Checkpointer(tmp_path, {}), pytest.raises(BlockingIOError, match="another process"):
        Checkpointer(tmp_path, {})


def poisoned(probability):
    """An objective whose gradient is all ones, but not finite in a random share of the steps."""

    def gradient(key, state, coreset, data, snapshots):
        value = jnp.where(jax.random.bernoulli(key, probability), jnp.nan, 1.0)
        return {"inputs": jnp.full_like(coreset.inputs, value)}, state, {"loss": value}

    return Objective("poisoned", MODEL, lambda key, coreset, data: (), gradient, None, {})


def test_steps_that_are_not_finite_are_skipped_and_too_many_end_the_run():
    start = Pseudocoreset.from_data(DATA, size=2, key=jax.random.key(0))
    arguments = dict(coreset=start, key=jax.random.key(0), steps=40, optimizer=optax.sgd(0.1), progress=False)
    some = optimise(poisoned(0.3), DATA, **arguments)
    assert some.outcome is Outcome.COMPLETED
    finite = int((~some.history["skipped"]).sum())
    assert 0 < finite < 40
    np.testing.assert_allclose(some.coreset.inputs, start.inputs - 0.1 * finite, atol=1e-4)
    never = optimise(poisoned(1.0), DATA, **arguments)
    assert never.outcome is Outcome.NON_FINITE
    assert len(never.history["skipped"]) == 10
    assert never.history["skipped"].all()
    np.testing.assert_array_equal(never.coreset.inputs, start.inputs)


def of(gradient, model=MODEL, free=("inputs",), loss_is_value=False):
    def whole(key, state, coreset, data, snapshots):
        leaves, loss = gradient(key, coreset)
        return leaves, state, {"loss": loss}

    return Objective("made", model, lambda key, coreset, data: (), whole, None, {}, free, loss_is_value=loss_is_value)


def square(key, coreset):
    """Gradient and value of half the squared inputs."""
    return {"inputs": coreset.inputs}, 0.5 * jnp.sum(coreset.inputs**2) + 0.1 * jax.random.normal(key)


@pytest.mark.parametrize(("rate", "is_worse"), [(0.1, False), (0.0, False), (-0.02, True), (2.3, True)])
def test_a_fit_that_ends_worse_than_its_start_says_so_first(rate, is_worse, caplog):
    start = Pseudocoreset.from_data(DATA, size=2, key=jax.random.key(0))
    arguments = dict(coreset=start, key=jax.random.key(0), steps=30, optimizer=optax.sgd(rate), progress=False)
    result = optimise(of(square, loss_is_value=True), DATA, **arguments)
    first = repr(result).splitlines()[0]
    assert result.outcome is Outcome.COMPLETED
    assert result.is_worse is is_worse
    assert first.startswith("FitResult(worse than its start: loss rose from ") is is_worse
    assert ("worse than its start" in caplog.text) is is_worse
    assert ("further from the full posterior" in result.advice) is is_worse
    # Nothing is said of a loss that is no value.
    assert not optimise(of(square), DATA, **arguments).is_worse


def test_noise_is_no_rise():
    """Of 400 fits whose loss is noise alone none; of 400 with a rise of a tenth and a noise of a tenth nearly all."""
    rng = np.random.default_rng(0)
    objectives = (of(square, loss_is_value=True),)
    noise = 10 + rng.normal(size=(400, 200))
    assert not any(find_rise(objectives, {"loss": row}) for row in noise)
    assert sum(find_rise(objectives, {"loss": row}) is not None for row in noise + np.linspace(0, 5, 200)) > 390
    assert find_rise(objectives, {"loss": np.array([2257.0, 11442.0])}) is not None
    assert find_rise(objectives, {"loss": np.array([1.0])}) is None
    # Wild after the first step, and never back.
    wild = np.r_[106.0, 1e5, 1.7e6, 4e5 * rng.random(30), 29_000 + 600 * rng.normal(size=27)]
    assert find_rise(objectives, {"loss": wild}).first == 106
    short = 10 + rng.normal(size=(400, 12))
    assert sum(find_rise(objectives, {"loss": row}) is not None for row in short) <= 12


def test_the_coreset_after_a_failure_has_a_finite_objective():
    """Steps of one upwards; from 3 above the start on the loss, and then the gradient, is no number."""
    start = Pseudocoreset.from_data(DATA, size=2, key=jax.random.key(0))

    def wall(lost_loss):
        def gradient(key, coreset):
            inside = jnp.max(coreset.inputs - start.inputs) < 2.5
            return (
                {"inputs": jnp.full_like(coreset.inputs, -1.0) * jnp.where(inside | lost_loss, 1.0, jnp.nan)},
                jnp.where(inside, 1.0, jnp.nan),
            )

        return gradient

    for lost_loss in (False, True):
        result = optimise(
            of(wall(lost_loss)), DATA, coreset=start, key=jax.random.key(0), steps=40, optimizer=optax.sgd(1.0),
            progress=False,
        )  # fmt: skip
        assert result.outcome is Outcome.NON_FINITE
        np.testing.assert_allclose(result.coreset.inputs, start.inputs + 2.0, atol=1e-5)
        assert "Since step 4 " in result.advice
        assert result.advice in repr(result)
        assert ("the gradient in the inputs was not finite" in result.advice) is not lost_loss
        assert ("the loss was not finite; the gradient" in result.advice) is lost_loss


@pytest.mark.parametrize("steps", [4, 8])
def test_a_fit_that_ends_on_few_skipped_steps_returns_the_last_finite_one(steps):
    """From 2.5 above the start on the loss is no number: steps 4 to 8 are skipped, fewer than stop a fit."""
    start = Pseudocoreset.from_data(DATA, size=2, key=jax.random.key(0))

    def wall(key, coreset):
        inside = jnp.max(coreset.inputs - start.inputs) < 2.5
        return {"inputs": jnp.full_like(coreset.inputs, -1.0)}, jnp.where(inside, 1.0, jnp.nan)

    arguments = dict(coreset=start, key=jax.random.key(0), optimizer=optax.sgd(1.0), progress=False)
    result = optimise(of(wall), DATA, steps=steps, **arguments)
    assert result.outcome is Outcome.COMPLETED
    np.testing.assert_allclose(result.coreset.inputs, start.inputs + 2.0, atol=1e-5)
    assert "Since step 4 the loss was not finite" in result.advice
    assert f"{steps - 3} of {steps} steps were skipped in all; the coreset is the last one whose" in repr(result)


@pytest.mark.parametrize(
    ("gradient", "rate", "said"),
    [
        (square, 1e38, "8 of 8 steps were skipped in all; the coreset is the start."),
        (lambda key, coreset: (square(key, coreset)[0], jnp.nan), 0.1, "no step had a finite objective and gradient"),
    ],
)
def test_a_fit_that_takes_no_step_says_so(gradient, rate, said, caplog):
    start = Pseudocoreset.from_data(DATA, size=2, key=jax.random.key(0))
    start = dataclasses.replace(start, inputs=100 * start.inputs)
    arguments = dict(coreset=start, key=jax.random.key(0), optimizer=optax.sgd(rate), progress=False)
    result = optimise(of(gradient), DATA, steps=8, **arguments)
    assert result.outcome is Outcome.NON_FINITE
    np.testing.assert_array_equal(result.coreset.inputs, start.inputs)
    assert said in result.advice
    assert "Take a smaller step size" in result.advice
    assert said in caplog.text


def test_advice_names_the_column_and_the_leaf():
    rows = Dataset.from_arrays(np.random.default_rng(0).normal(size=(20, 5)), np.arange(20) % 2)
    model = logistic_regression(rows)
    start = Pseudocoreset.from_data(rows, size=4, key=jax.random.key(0))

    def column(key, coreset):
        lost = jnp.ones_like(coreset.inputs).at[:, 3].set(jnp.nan)
        return {"inputs": lost, "weights": jnp.ones_like(coreset.weights)}, jnp.ones(())

    arguments = dict(coreset=start, key=jax.random.key(0), steps=20, optimizer=optax.sgd(0.1), progress=False)
    found = optimise(of(column, model, ("inputs", "weights")), rows, **arguments)
    assert "Since step 1 the gradient in the inputs in column 3 was not finite; the likelihood was" in found.advice
    assert "weights" not in found.advice.split(";")[0]


def positive_program(x, y=None):
    rate = numpyro.sample("rate", dist.LogNormal(0, 1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Gamma(2.0, rate * jnp.exp(x[:, 0])), obs=y)


def test_advice_for_targets_without_likelihood_is_no_step_size():
    model = Model.from_numpyro(positive_program)
    x = np.random.default_rng(0).normal(size=(20, 1)).astype(np.float32)
    rows = Dataset.from_arrays(x, np.ones(20, np.float32))
    model = model.bind(x, rows.train.y)
    start = Pseudocoreset.from_data(rows, size=4, key=jax.random.key(0))
    bad = dataclasses.replace(start, targets=np.array([1.0, -2.5, 1.0, 1.0], np.float32))

    def likelihood(key, coreset):
        def loss(targets):
            params = model.init(jax.random.key(1))
            return -jnp.sum(model.log_likelihood(params, coreset.inputs, targets))

        value, slope = jax.value_and_grad(loss)(coreset.targets)
        return {"targets": jnp.where(jnp.isfinite(value), 10.0 + 0 * slope, jnp.nan)}, value

    arguments = dict(key=jax.random.key(0), steps=20, optimizer=optax.sgd(0.04), progress=False)
    never = optimise(of(likelihood, model, ("targets",)), rows, coreset=bad, **arguments)
    assert "targets of 1 of the 4 points of the start have no finite likelihood" in never.advice
    assert "points 1; their targets are -2.5" in never.advice
    assert "smaller step size" not in repr(never)
    moved = optimise(of(likelihood, model, ("targets",)), rows, coreset=start, **arguments)
    assert "Since step 4 the likelihood of" in moved.advice
    assert "is not finite at points 0, 1, 2, 3: their targets left its support" in moved.advice
    assert "smaller step size" not in repr(moved)
    assert np.all(moved.coreset.targets > 0)


def test_callbacks_see_progress_and_can_stop(experts):
    seen = []

    def callback(step, coreset, info):
        seen.append((step, coreset.size, "loss" in info))
        return step >= 20

    result = fbpc(experts, steps=40, callbacks=[callback])
    assert seen == [(10, 3, True), (20, 3, True)]
    assert result.outcome is Outcome.STOPPED
    assert len(result.history["loss"]) == 20


def test_without_experts_it_trains_them(tmp_path):
    result = fbpc(None, num_experts=1, num_expert_epochs=2, checkpoint_dir=tmp_path)
    assert result.coreset.size == 3
    assert Experts.load(tmp_path / "experts-0").num_epochs == 2


def test_published_recipes():
    """Table 4 of the paper."""
    row = fbpc_recipe("cifar10", 10)
    assert (row.first_epoch, row.inner_loss, row.step_size, row.steps) == (2, 0.1, 1000.0, 1000)
    assert fbpc_recipe("tiny_imagenet", 50).coreset_learning_rate == 3.0
    assert fbpc_recipe("cifar10", 20) == row
    assert fbpc_recipe("digits", 1).steps == fbpc_recipe("mine", None).steps


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(images_per_class=None), ValueError, "one of images_per_class and size"),
        (dict(images_per_class=31), ValueError, "class 0 has 30"),
        (dict(key=1), TypeError, "jax.random.key"),
        (dict(steps=0), ValueError, "steps"),
        (dict(proxy="laplace"), ValueError, "proxy='laplace'"),
        (dict(weights="most"), ValueError, "weights='most'"),
        (dict(first_epoch=9), ValueError, "first_epoch=9.*5 epochs"),
        (dict(step_size=-1.0), ValueError, "step_size"),
        (dict(step_size=1.0, optimizer=optax.adam(0.1)), ValueError, "optimizer or step_size"),
        (dict(augment="color_crop"), ValueError, "needs images"),
        (dict(model=[]), TypeError, "model"),
        (dict(model=bnn(MLP((9,)), DATA)), ValueError, "trained on another model"),
    ],
)
def test_bad_arguments_are_named_before_anything_runs(experts, arguments, error, message):
    with pytest.raises(error, match=message):
        fbpc(experts, **arguments)


def test_one_compilation_for_all_steps(experts):
    traces = []
    base = function_kl(MODEL, proxy="isotropic", inner_max_steps=2, num_draws=2)

    def counted(*arguments):
        traces.append(1)
        return base.gradient(*arguments)

    objective = Objective("counted", MODEL, base.init, counted, base.window, {})
    optimise(
        objective,
        DATA,
        size=3,
        key=jax.random.key(0),
        steps=50,
        optimizer=optax.sgd(1.0),
        experts=experts,
        progress=False,
    )
    assert len(traces) == 1


@pytest.mark.slow
def test_fbpc_on_digits_beats_the_images_it_started_from():
    """The whole of it on real images: networks trained on the coreset do better than on its start."""
    data = load_dataset("digits")
    model = bnn(ConvNet(depth=2, width=16), data)
    experts = train_experts(
        model,
        data,
        num_experts=4,
        num_epochs=10,
        learning_rate=0.1,
        batch_size=64,
        key=jax.random.key(0),
        progress=False,
    )
    start = Pseudocoreset.from_data(data, images_per_class=1, key=jax.random.key(1))
    result = fit_fbpc(
        model, data, coreset=start, key=jax.random.key(2), steps=100, experts=experts, step_size=100.0,
        inner_learning_rate=0.01, progress=False,
    )  # fmt: skip

    def accuracy(coreset, key):
        optimizer = optax.adam(0.01)

        @jax.jit
        def train(key):
            params = model.init(key)

            def step(carry, _):
                p, s = carry
                g = jax.grad(lambda q: -model.log_likelihood(q, coreset.inputs, coreset.targets).mean())(p)
                updates, s = optimizer.update(g, s)
                return (optax.apply_updates(p, updates), s), None

            return jax.lax.scan(step, (params, optimizer.init(params)), None, length=200)[0][0]

        predicted = model.apply(train(key), data.test.x).argmax(1)
        return float((predicted == data.test.y).mean())

    keys = jax.random.split(jax.random.key(3), 3)
    before = np.mean([accuracy(start, k) for k in keys])
    after = np.mean([accuracy(result.coreset, k) for k in keys])
    assert after > before + 0.05


def test_the_name_of_the_front_door():
    from pseudocoreset import fit_fbpc as front_door

    assert front_door is fit_fbpc
    assert pathlib.Path(inspect.getfile(front_door.method)).name == "fbpc.py"
    assert pickle.loads(pickle.dumps(front_door)) is fit_fbpc
