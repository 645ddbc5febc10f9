"""Published protocols from end to end, against NumPy where nothing in them is random."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset import Dataset, Pseudocoreset, evaluate
from pseudocoreset.evaluation import FBPC2023, Distillation, Kim2022
from pseudocoreset.evaluation.base import Learning
from pseudocoreset.models import MLP, ConvNet, bnn
from pseudocoreset.objectives import Rows

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(3, 5))
LABELS = np.tile(np.arange(3), 60).astype(np.int32)
INPUTS = (CENTRES[LABELS] + RNG.normal(size=(180, 5))).astype(np.float32)
DATA = Dataset.from_arrays(INPUTS[:90], LABELS[:90], test=(INPUTS[90:], LABELS[90:]))
CORESET = Pseudocoreset.from_data(DATA, images_per_class=2, key=jax.random.key(0))
FREE = bnn(MLP(widths=()), DATA)
START = FREE.init(jax.random.key(1))
LINEAR = replace(FREE, initializer=lambda key: START)  # starts where NumPy can
KERNEL, BIAS = sorted(START, key=lambda name: -START[name].ndim)
ARRAYS = Rows(*map(jnp.asarray, (CORESET.inputs, CORESET.targets, CORESET.weights)))
KEY = jax.random.key(2)


def gradient(theta):
    """Of the mean cross-entropy of softmax regression on the coreset."""
    kernel, bias = theta
    logits = CORESET.inputs.astype(np.float64) @ kernel + bias
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    error = (probabilities - np.eye(3)[CORESET.targets]) / CORESET.size
    return [CORESET.inputs.T @ error, error.sum(0)]


def score(theta):
    logits = DATA.test.x.astype(np.float64) @ theta[0] + theta[1]
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return log_probabilities


def accuracy_and_nll(log_probabilities):
    y = DATA.test.y
    return np.mean(log_probabilities.argmax(1) == y), -np.mean(log_probabilities[np.arange(len(y)), y])


def start():
    return [np.asarray(START[KERNEL], np.float64), np.asarray(START[BIAS], np.float64)]


def run(model=LINEAR, coreset=CORESET, key=KEY, **settings):
    return evaluate(coreset, model, DATA, key=key, split="test", progress=False, **settings)


def test_distillation_is_the_loop_of_its_papers():
    """Six epochs: the step size falls after four, and the velocity starts again."""
    theta, v = start(), [0.0, 0.0]
    for epoch in range(6):
        rate = 0.1 if epoch < 4 else 0.01
        v = [0.0, 0.0] if epoch == 4 else v
        v = [0.9 * a + g + 5e-4 * t for a, g, t in zip(v, gradient(theta), theta, strict=True)]
        theta = [t - rate * a for t, a in zip(theta, v, strict=True)]
    accuracy, nll = accuracy_and_nll(score(theta))
    found = run(protocol="distillation", learning_rate=0.1, num_epochs=6, num_networks=2)
    # All networks start from the same weights and see all points each step: nothing is random.
    np.testing.assert_allclose(found.metrics["nll"].values, [nll, nll], rtol=1e-5)
    np.testing.assert_allclose(found.metrics["accuracy"].values, [accuracy, accuracy], rtol=1e-6)
    assert found.metrics["ensemble_nll"].mean == pytest.approx(nll, rel=1e-5)
    assert found.settings["decay_after"] == 4


def test_fbpc2023_without_noise_is_gradient_descent_with_momentum_and_averages_its_draws():
    """From rest at zero, without a prior, nothing is random; a position moves by learning rate times velocity."""
    theta, v, draws = [np.zeros_like(one) for one in start()], [0.0, 0.0], []
    for epoch in range(6):
        theta = [t + 0.5 * a for t, a in zip(theta, v, strict=True)]
        v = [0.9 * a - 0.5 * 6 * g for a, g in zip(v, gradient(theta), strict=True)]
        if epoch % 2 == 1:
            draws.append(score(theta))
    accuracy, nll = accuracy_and_nll(np.logaddexp.reduce(draws) - np.log(3))
    at_rest = dict(noise=0.0, weight_decay=0.0, init_scale=1e-12, momentum_scale=0.0)
    found = run(protocol="fbpc2023", learning_rate=0.5, num_epochs=6, sample_every=2, num_repeats=1, **at_rest)
    assert found.metrics["nll"].mean == pytest.approx(nll, rel=1e-5)
    assert found.metrics["accuracy"].mean == pytest.approx(accuracy)
    members = np.mean([accuracy_and_nll(one)[1] for one in draws])
    assert found.metrics["nll_member"].mean == pytest.approx(members, rel=1e-5)
    assert nll < found.metrics["nll_batchmean"].mean < members


@pytest.mark.parametrize(
    "protocol",
    [
        Kim2022(noise=0.0, num_steps=2, weight_decay=0.7),
        FBPC2023(noise=0.0, num_epochs=2, sample_every=2, weight_decay=0.7),
    ],
)
def test_the_whole_potential_is_multiplied_by_the_number_of_points(protocol):
    """Two steps of SGHMC without noise, from where the protocol starts."""
    protocol = protocol.resolved(CORESET, 3)
    task = Learning(FREE, None)
    state = protocol.start(KEY, task)
    theta = [np.asarray(state.position[name], np.float64) for name in (KERNEL, BIAS)]
    p = [np.asarray(state.momentum[name], np.float64) for name in (KERNEL, BIAS)]
    for _ in range(2):
        theta = [t + 0.03 * a for t, a in zip(theta, p, strict=True)]
        norm = np.sqrt(sum(np.sum(t**2) for t in theta))
        slope = [6 * (g + 0.7 * t / norm) for g, t in zip(gradient(theta), theta, strict=True)]
        p = [0.9 * a - 0.03 * g for a, g in zip(p, slope, strict=True)]
    moved = protocol.advance(KEY, jnp.asarray(0), state, task, ARRAYS)
    for name, wanted, momentum in zip((KERNEL, BIAS), theta, p, strict=True):
        np.testing.assert_allclose(moved.position[name], wanted, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(moved.momentum[name], momentum, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("protocol", "scale"),
    [
        (Kim2022(num_steps=1, step_size=1e-12, momentum_scale=0.0), np.sqrt(2 * 0.1 * 0.01)),
        (FBPC2023(num_epochs=1, sample_every=1, learning_rate=1e-12, momentum_scale=0.0), np.sqrt(2 * 0.01 / 6)),
    ],
)
def test_noise_of_one_step_has_its_published_size(protocol, scale):
    """It is all there is of a momentum after one step from rest of next to no size."""
    wide = bnn(MLP(widths=(300,)), DATA)
    task, one = Learning(wide, None), protocol.resolved(CORESET, 3)
    moved = jax.jit(lambda key: one.advance(key, jnp.asarray(0), one.start(key, task), task, ARRAYS))(KEY)
    noise = np.asarray(wide.flatten(moved.momentum))
    assert abs(noise.std() / scale - 1) < 5 / np.sqrt(2 * noise.size)
    assert abs(noise.mean()) < 5 * scale / np.sqrt(noise.size)


@pytest.mark.parametrize(
    "protocol", [Kim2022(), Kim2022(sampler="hmc"), FBPC2023(), Distillation(learning_rate=0.1, batch_size=1000)]
)
def test_a_round_takes_the_memory_of_a_few_points(protocol):
    """And goes where one goes that takes all of them at once."""
    network = bnn(ConvNet(depth=2, width=32), input_shape=(16, 16, 3), num_outputs=3)
    inputs = jnp.asarray(RNG.normal(size=(400, 16, 16, 3)), jnp.float32)
    many = Rows(inputs, jnp.asarray(np.arange(400) % 3, jnp.int32), jnp.linspace(0.5, 1.5, 400))
    short = dict(num_iterations=2, num_steps=2, num_burn_in=0, step_size=1e-3, momentum_scale=0.1, weight_decay=0.1)
    few = replace(protocol, **short) if isinstance(protocol, Kim2022) else protocol
    few = replace(few, num_epochs=2, sample_every=2) if isinstance(few, FBPC2023) else few
    rule = few.resolved(Pseudocoreset(*map(np.asarray, many)), 3)

    def moved(model):
        task = Learning(model, None)
        state = rule.start(KEY, task)
        step = jax.jit(lambda state, points: rule.advance(KEY, jnp.asarray(0), state, task, points))
        compiled = step.lower(state, many).compile()
        return compiled.memory_analysis().temp_size_in_bytes, rule.position(compiled(state, many))

    (chunks, near), (whole, wanted) = moved(network), moved(replace(network, is_separable=False))
    assert 2 * chunks < whole
    for name, values in wanted.items():
        np.testing.assert_allclose(near[name], values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("protocol", [Kim2022(), FBPC2023()])
def test_norms_start_like_everything_else(protocol):
    """At 0.1 N(0, 1), where the initialiser has scales of one and biases within bounds."""
    shape = (8, 8, 1)
    model = bnn(ConvNet(depth=1, width=1024, norm="instance"), input_shape=shape, num_outputs=3)
    state = protocol.resolved(CORESET, 3).start(KEY, Learning(model, None))
    scales = np.concatenate([state.position[name] for name in sorted(state.position) if name.endswith("scale")])
    assert scales.size == 1024  # of which a deviation a fifth off is nine errors away, a mean 0.3 of it off ten
    assert abs(scales.mean()) < 5 * 0.1 / np.sqrt(1024)
    assert abs(scales.std() / 0.1 - 1) < 5 / np.sqrt(2 * 1024)


@pytest.mark.parametrize(
    ("sampler", "images_per_class", "wanted"),
    [
        ("sghmc", 1, (20, 5, 10, 0.03, 0.1, 1.0)),
        ("sghmc", 10, (100, 5, 50, 0.01, 0.1, 1.5)),
        ("sghmc", 50, (100, 5, 50, 0.01, 0.1, 1.0)),
        ("hmc", 1, (20, 20, 10, 0.05, 0.01, 0.5)),
        ("hmc", 10, (100, 5, 50, 0.01, 0.1, 1.5)),
        ("hmc", 20, (100, 5, 50, 0.01, 0.1, 1.5)),
    ],
)
def test_kim2022_takes_the_settings_of_the_nearest_number_of_images(sampler, images_per_class, wanted):
    coreset = replace(
        CORESET,
        inputs=np.zeros((3 * images_per_class, 5), np.float32),
        targets=np.repeat(np.arange(3), images_per_class),
        weights=np.ones(3 * images_per_class, np.float32),
    )
    found = Kim2022(sampler=sampler).resolved(coreset, 3)
    fields = ("num_iterations", "num_steps", "num_burn_in", "step_size", "momentum_scale", "weight_decay")
    assert tuple(getattr(found, field) for field in fields) == wanted
    assert found.augment == ("auto" if sampler == "sghmc" else None)
    assert replace(Kim2022(sampler=sampler), step_size=7.0).resolved(coreset, 3).step_size == 7.0


@pytest.mark.parametrize("sampler", ["sghmc", "hmc"])
def test_kim2022_says_that_it_is_no_sampler_and_scores_by_both_formulas(sampler):
    few = dict(protocol="kim2022", sampler=sampler, num_repeats=3)
    found, same, other = (run(FREE, key=key, **few) for key in (KEY, KEY, jax.random.key(9)))
    assert found.metrics["nll"].values == same.metrics["nll"].values != other.metrics["nll"].values
    assert "not a valid sampler" in repr(found)
    assert "published tables" in repr(found)
    assert {"nll", "nll_member", "nll_batchmean", "ece", "ece_batch"} <= found.metrics.keys()
    assert len(set(found.metrics["nll"].values)) == 3
    assert ("acceptance_rate" in found.metrics) == (sampler == "hmc")
    if sampler == "hmc":
        # One image a class: 20 transitions.
        assert all(
            rate in np.arange(21) / np.float32(20) for rate in np.float32(found.metrics["acceptance_rate"].values)
        )


def test_distillation_takes_the_step_size_that_was_learned():
    learned = replace(CORESET, metadata=CORESET.metadata | {"learned_step_size": 0.25})
    assert Distillation().resolved(learned, 3).learning_rate == 0.25
    assert Distillation(learning_rate=0.1).resolved(learned, 3).learning_rate == 0.1
    assert Distillation().resolved(CORESET, 3).learning_rate == 0.01
    assert Distillation().resolved(CORESET, 3).decay_after == 502


def test_ratios_of_weights_count_and_their_sum_does_not():
    few = dict(protocol="distillation", learning_rate=0.1, num_epochs=10, num_networks=1)
    plain, heavy = run(**few), run(coreset=CORESET.with_mass(1000.0), **few)
    assert heavy.metrics["nll"].mean == pytest.approx(plain.metrics["nll"].mean, rel=1e-5)
    uneven = replace(CORESET, weights=np.linspace(0.1, 1.0, 6, dtype=np.float32))
    assert run(coreset=uneven, **few).metrics["nll"].mean != pytest.approx(plain.metrics["nll"].mean, rel=1e-3)


def test_class_probabilities_may_be_targets():
    soft = replace(CORESET, targets=np.eye(3, dtype=np.float32)[CORESET.targets])
    few = dict(protocol="distillation", num_epochs=5, num_networks=1)
    assert run(coreset=soft, **few).metrics["nll"].mean == pytest.approx(run(**few).metrics["nll"].mean, rel=1e-5)


def test_batches_of_a_larger_coreset_are_random_and_the_key_decides():
    few = dict(protocol="distillation", learning_rate=0.1, num_epochs=3, batch_size=4, num_networks=2)
    found = [run(key=key, **few).metrics["nll"].values for key in (KEY, KEY, jax.random.key(9))]
    assert len(set(found[0])) == 2
    assert found[0] == found[1] != found[2]


def test_the_key_decides():
    few = dict(protocol="fbpc2023", num_epochs=4, sample_every=2, num_repeats=1)
    found = [run(FREE, key=key, **few).metrics["nll"].mean for key in (KEY, KEY, jax.random.key(9))]
    assert found[0] == found[1] != found[2]


def test_images_are_augmented_anew_each_step():
    """What else is random, is not: the start is given, and all points are in every step."""
    assert {Kim2022().augment, FBPC2023().augment, Distillation().augment} == {"auto"}
    images = Dataset.from_arrays(RNG.normal(size=(30, 12, 12, 1)).astype(np.float32), LABELS[:30])
    coreset = Pseudocoreset.from_data(images, images_per_class=1, key=KEY)
    model = bnn(MLP(widths=()), images)
    first = model.init(KEY)
    fixed = replace(model, initializer=lambda key: first)
    few = dict(protocol="distillation", num_epochs=8, num_networks=2, learning_rate=0.1, key=KEY, progress=False)
    flipped = evaluate(coreset, fixed, images, augment="flip", **few)
    assert flipped.settings["augment"] == "flip"
    assert len(set(flipped.metrics["nll"].values)) == 2


def test_a_run_that_leaves_the_finite_numbers_is_reported():
    with pytest.raises(FloatingPointError, match=r"'distillation' left the finite numbers in repeats \[0, 1\]"):
        run(protocol="distillation", learning_rate=1e30, num_epochs=5, num_networks=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Kim2022(sampler="nuts"), "sampler"),
        (lambda: Kim2022(num_iterations=5, num_burn_in=5), "num_burn_in=5 leaves no draw"),
        (lambda: Kim2022(step_size=0.0), "step_size"),
        (lambda: Kim2022(weight_decay=-1.0), "weight_decay"),
        (lambda: Kim2022(friction=1.0), "friction"),
        (lambda: FBPC2023(num_epochs=10, sample_every=3), "multiple of sample_every"),
        (lambda: FBPC2023(noise=-1.0), "noise"),
        (lambda: Distillation(momentum=1.0), "momentum"),
        (lambda: Distillation(num_networks=0), "num_networks"),
        (lambda: Distillation(learning_rate=-1.0), "learning_rate"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
