"""Gradient, trajectory and distribution matching and BACON, against NumPy in float64 that shares no code with them."""

import functools

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from pseudocoreset import (
    Dataset,
)
from pseudocoreset.data import Preprocessing
from pseudocoreset.data.augmentation import Augmentation
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.models import MLP, ConvNet, Model, bnn, linear_regression, logistic_regression
from pseudocoreset.objectives import Rows, SnapshotWindow
from pseudocoreset.objectives.bacon import bacon
from pseudocoreset.objectives.by_class import class_batches
from pseudocoreset.objectives.distribution_matching import distribution_matching
from pseudocoreset.objectives.gradient_matching import cosine_distance, gradient_matching

RNG = np.random.default_rng(11)
CLASSES, D = 3, 4
X = RNG.normal(size=(23, D))
Y = np.r_[np.arange(21) % 3, 0, 0].astype(np.int32)
U = RNG.normal(size=(6, D))
V = np.array([2, 0, 1, 0, 2, 2], np.int32)  # neither sorted nor of equal numbers
W = np.array([1.0, 2.0, 0.5, 3.0, 0.7, 1.3])
THETA = {"kernel": RNG.normal(size=(D, CLASSES)), "bias": RNG.normal(size=CLASSES)}
POINTS, MEMBERS = ([np.flatnonzero(np.equal(labels, c)) for c in range(CLASSES)] for labels in (V, Y))
ALL = 10_000  # a batch with all the data
LEAVES = ("inputs", "targets", "weights")


def softmax_program(x, y=None):
    """Linear softmax regression whose features are its inputs."""
    kernel = numpyro.sample("kernel", dist.Normal(0.0, 1.0).expand((D, CLASSES)).to_event(2))
    bias = numpyro.sample("bias", dist.Normal(0.0, 1.0).expand((CLASSES,)).to_event(1))
    numpyro.deterministic("features", x.reshape(x.shape[0], -1))
    f = numpyro.deterministic("f", x.reshape(x.shape[0], -1)[:, :D] @ kernel + bias)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=f), obs=y)


class Float64:
    """Preprocessing that leaves float64 alone, so that the tests stay exact."""

    def apply(self, raw):
        return raw


def data64(x=X, y=Y):
    return DeviceData(jnp.asarray(x), jnp.asarray(y), Float64())


def arrays(u=U, v=V, w=W):
    return Rows(jnp.asarray(u), jnp.asarray(v), jnp.asarray(w))


@functools.cache
def quick(function):
    """Compiled once; most of the time of these tests is compilation."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def step(objective, coreset=None, data=None, snapshots=(), key=1, state=None):
    coreset, data = arrays() if coreset is None else coreset, data64() if data is None else data
    state = objective.init(jax.random.key(0), coreset, data) if state is None else state
    gradient, state, info = quick(objective.gradient)(jax.random.key(key), state, coreset, data, snapshots)
    return jax.tree.map(np.asarray, gradient), jax.tree.map(np.asarray, state), jax.tree.map(np.asarray, info)


def slope(theta, x, y, w):
    """Gradient of the weighted mean cross-entropy of softmax regression; ``y`` labels or probabilities."""
    logits = x @ theta["kernel"] + theta["bias"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    y = np.eye(CLASSES)[y] if y.ndim == 1 else y
    residual = (p / p.sum(1, keepdims=True) * y.sum(1, keepdims=True) - y) * (w / w.sum())[:, None]
    return {"kernel": x.T @ residual, "bias": residual.sum(0)}


def cosine(one, other):
    g, h = one["kernel"], other["kernel"]
    return sum(
        1 - g[:, k] @ h[:, k] / (np.linalg.norm(g[:, k]) * np.linalg.norm(h[:, k]) + 1e-6) for k in range(CLASSES)
    )


def squared(one, other):
    return sum(np.sum((one[name] - other[name]) ** 2) for name in one)


def matching(distance, u, v, w, by_class, theta=THETA):
    if not by_class:
        return distance(slope(theta, u, v, w), slope(theta, X, Y, np.ones(len(X))))
    return sum(
        distance(slope(theta, u[i], v[i], w[i]), slope(theta, X[k], Y[k], np.ones(len(k))))
        for i, k in zip(POINTS, MEMBERS, strict=True)
    )


def differences(function, leaves, h=1e-6):
    """Gradients of ``function(*leaves)`` in every leaf of floats, by central differences."""
    gradients = []
    for i, leaf in enumerate(leaves):
        gradient = np.zeros(leaf.shape)
        for index in np.ndindex(*leaf.shape) if leaf.dtype.kind == "f" else ():
            ends = []
            for sign in (1, -1):
                moved = [one.copy() for one in leaves]
                moved[i][index] += sign * h
                ends.append(function(*moved))
            gradient[index] = (ends[0] - ends[1]) / (2 * h)
        gradients.append(gradient)
    return gradients


SOFT = RNG.dirichlet(np.ones(CLASSES), size=6) * 0.2 + 0.8 * np.eye(CLASSES)[V]
# One of each for all tests, which then compile it once.
MODEL = Model.from_numpyro(softmax_program).bind(X, Y)
BOTH = ("inputs", "weights")
DC = gradient_matching(MODEL, batch_size=ALL, window=SnapshotWindow(0), free=LEAVES)
SQUARED = gradient_matching(
    MODEL, distance="squared", by_class=False, batch_size=ALL, window=SnapshotWindow(0), free=LEAVES
)
DM = distribution_matching(MODEL, batch_size=ALL, free=BOTH)
BACON = bacon(MODEL, variant="released", weight=0.8, batch_size=ALL, free=BOTH)


def snapshot():
    return ({name: jnp.asarray(a) for name, a in THETA.items()},)


@pytest.mark.parametrize(("objective", "distance", "by_class"), [(DC, cosine, True), (SQUARED, squared, False)])
def test_gradient_matching_in_all_leaves(objective, distance, by_class):
    """Of softmax regression, second-order derivatives through both gradients; the bias has no part in the cosine."""
    with jax.enable_x64(True):
        gradient, _, info = step(objective, arrays(v=SOFT), snapshots=snapshot())

    def exact(u, v, w):
        return matching(distance, u, v, w, by_class)

    np.testing.assert_allclose(info["loss"], exact(U, SOFT, W), rtol=1e-9)
    for name, wanted in zip(LEAVES, differences(exact, (U, SOFT, W)), strict=True):
        np.testing.assert_allclose(gradient[name], wanted, rtol=1e-5, atol=1e-7)


def test_rows_of_a_convolution_are_its_filters_and_dead_ones_have_a_derivative():
    kernel, other = RNG.normal(size=(2, 3, 3, 2, 5))
    kernel[..., 1] = other[..., 1] = 0.0
    g, h = kernel.reshape(18, 5), other.reshape(18, 5)
    live = [0, 2, 3, 4]
    cosines = (g * h).sum(0)[live] / (np.linalg.norm(g[:, live], axis=0) * np.linalg.norm(h[:, live], axis=0))
    sites = {"kernel": kernel, "bias": np.ones(5), "scale": np.array(2.0)}
    with jax.enable_x64(True):
        compiled = jax.jit(jax.value_and_grad(cosine_distance))
        value, slopes = compiled(sites, {**sites, "kernel": other, "bias": -np.ones(5)})
        first = {name: np.moveaxis(a, -1, 0) for name, a in (("one", kernel), ("two", other))}
        bias = np.ones((5, 1, 1))  # of a convolution in equinox
        turned = cosine_distance(
            {"kernel": first["one"], "bias": bias}, {"kernel": first["two"], "bias": -bias}, outputs_last=False
        )
    np.testing.assert_allclose(value, 5 - cosines.sum(), rtol=1e-5)
    np.testing.assert_allclose(turned, value, rtol=1e-12)
    assert np.all(np.isfinite(slopes["kernel"]))
    assert not np.any(slopes["bias"])


def test_of_norms_only_those_over_whole_images_count():
    """Their scale and shift have an entry for each pixel; as in the reference, a cosine for each channel."""
    model = bnn(ConvNet(depth=1, width=4, norm="layer"), PICTURES)
    one, other = ({k: np.asarray(v) for k, v in quick(model.init)(jax.random.key(i)).items()} for i in (0, 1))
    images = [name for name, site in one.items() if site.shape == (8, 8, 4)]
    assert len(images) == 2
    one |= {name: RNG.normal(size=(8, 8, 4)) for name in images}
    other |= {name: RNG.normal(size=(8, 8, 4)) for name in images}
    wanted = 0.0
    for name in images:
        g, h = one[name].reshape(64, 4), other[name].reshape(64, 4)
        wanted += 4 - np.sum((g * h).sum(0) / (np.linalg.norm(g, axis=0) * np.linalg.norm(h, axis=0)))
    rest = {name: site for name, site in one.items() if name not in images}
    found = cosine_distance(one, other) - cosine_distance(rest, other)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    vectors = {name: site for name, site in rest.items() if site.ndim == 1}
    assert float(cosine_distance(vectors, other)) == 0.0


def test_equinox_counts_output_units_first():
    network = equinox.nn.MLP(4, 3, 6, 1, key=jax.random.key(3))
    assert not bnn(network, input_shape=(4,), num_outputs=3).outputs_last
    assert NET.outputs_last
    assert MODEL.outputs_last


def test_the_network_is_trained_on_the_coreset_between_matches_and_then_drawn_afresh():
    with jax.enable_x64(True):
        objective = gradient_matching(
            MODEL,
            distance="squared", by_class=False, batch_size=ALL, num_outer=2, num_inner_steps=3, inner_learning_rate=0.3,
        )  # fmt: skip
        _, first, info = step(objective, key=1)
        losses = [info["loss"]]
        moved = arrays(u=U + 0.5)  # as the coreset is at the next step, not as it was
        states = [first]
        for key in (2, 3):
            _, state, info = step(objective, moved, key=key, state=states[-1])
            states.append(state)
            losses.append(info["loss"])
    theta = {name: np.asarray(a) for name, a in first.params.items()}
    np.testing.assert_allclose(losses[0], matching(squared, U, V, W, False, theta), rtol=1e-6)
    for _ in range(3):
        gradient = slope(theta, U + 0.5, V, W)
        theta = {name: a - 0.3 * gradient[name] for name, a in theta.items()}
    for name, wanted in theta.items():
        np.testing.assert_allclose(states[1].params[name], wanted, rtol=1e-5)
    np.testing.assert_allclose(losses[1], matching(squared, U + 0.5, V, W, False, theta), rtol=1e-5)
    assert [int(s.matched) for s in states] == [1, 0, 1]
    assert not np.any(np.isclose(states[2].params["kernel"], states[1].params["kernel"]))
    assert not np.any(np.isclose(states[2].params["kernel"], first.params["kernel"]))


def test_squared_gradient_matching_is_the_reverse_kl_of_one_step_posteriors():
    """Kim et al. 2022: KL(N(theta - eta grad_u, s^2 I) || N(theta - eta grad_x, s^2 I)), up to eta^2 / (2 s^2)."""
    eta, scale = 0.05, 0.3

    def posterior(x, y, w):
        gradient = slope(THETA, x, y, w)
        mean = np.concatenate([(THETA[name] - eta * gradient[name]).ravel() for name in ("bias", "kernel")])
        return mean, scale**2 * np.eye(mean.size)

    def divergence(u, v, w):
        (m0, s0), (m1, s1) = posterior(u, v, w), posterior(X, Y, np.ones(len(X)))
        inverse = np.linalg.inv(s1)
        log_dets = np.linalg.slogdet(s1)[1] - np.linalg.slogdet(s0)[1]
        return 0.5 * (np.trace(inverse @ s0) + (m1 - m0) @ inverse @ (m1 - m0) - m0.size + log_dets)

    with jax.enable_x64(True):
        gradient, _, _ = step(SQUARED, arrays(v=SOFT), snapshots=snapshot())
    wanted = differences(divergence, (U, SOFT, W))
    for name, exact in (("inputs", wanted[0]), ("weights", wanted[2])):
        np.testing.assert_allclose(eta**2 / (2 * scale**2) * gradient[name], exact, rtol=1e-4, atol=1e-9)


def class_means(u, w):
    return np.stack([w[i] @ u[i] / w[i].sum() for i in POINTS])


REAL_MEANS = np.stack([X[k].mean(0) for k in MEMBERS])


def test_distribution_matching_in_closed_form():
    with jax.enable_x64(True):
        gradient, _, info = step(DM, arrays(v=SOFT))
    means, mass = class_means(U, W), np.array([W[i].sum() for i in POINTS])
    gap = means - REAL_MEANS
    np.testing.assert_allclose(info["loss"], np.sum(gap**2), rtol=1e-10)
    np.testing.assert_allclose(gradient["inputs"], 2 * (W / mass[V])[:, None] * gap[V], rtol=1e-10)
    np.testing.assert_allclose(
        gradient["weights"], 2 * np.sum(gap[V] * (U - means[V]), 1) / mass[V], rtol=1e-9, atol=1e-12
    )


EACH = pytest.mark.parametrize(("objective", "snapshots"), [(DM, False), (DC, True), (BACON, False)])


@EACH
def test_a_point_is_as_good_as_two_of_half_its_weight(objective, snapshots):
    twice, soft = U.copy(), SOFT.copy()
    twice[3], soft[3] = U[1], SOFT[1]
    found = []
    for pair in ([2.0, 0.0], [1.0, 1.0]):
        w = W.copy()
        w[[1, 3]] = pair
        with jax.enable_x64(True):
            found.append(step(objective, arrays(twice, soft, w), snapshots=snapshot() if snapshots else ()))
    (whole, _, info), (halves, _, again) = found
    np.testing.assert_allclose(again["loss"], info["loss"], rtol=1e-10)
    others = [0, 2, 4, 5]
    np.testing.assert_allclose(halves["inputs"][others], whole["inputs"][others], rtol=1e-9)
    np.testing.assert_allclose(halves["inputs"][1] + halves["inputs"][3], whole["inputs"][1], rtol=1e-9)
    assert np.all(halves["inputs"][3] != 0)


@EACH
def test_a_class_without_weight_is_left_out(objective, snapshots):
    with jax.enable_x64(True):
        w = np.where(np.equal(V, 1), 0.0, W)
        gradient, _, info = step(objective, arrays(v=SOFT, w=w), snapshots=snapshot() if snapshots else ())
    assert all(np.all(np.isfinite(leaf)) for leaf in gradient.values())
    assert not np.any(gradient["inputs"][2])
    if objective is DM:
        gap = (class_means(U, W) - REAL_MEANS)[[0, 2]]
        np.testing.assert_allclose(info["loss"], np.sum(gap**2), rtol=1e-10)


def test_a_class_without_points_or_data_is_left_out():
    with jax.enable_x64(True):
        kept, known = np.not_equal(V, 1), np.not_equal(Y, 2)
        _, _, info = step(DM, arrays(U[kept], V[kept], W[kept]), data64(X[known], Y[known]))
    gap = (class_means(U, W) - REAL_MEANS)[0]
    np.testing.assert_allclose(info["loss"], np.sum(gap**2), rtol=1e-10)


def test_batches_hold_different_data_of_their_class_and_all_of_a_small_one():
    draw = jax.jit(class_batches, static_argnums=(2, 3))
    found = [[np.asarray(a) for a in draw(jax.random.key(k), data64(), CLASSES, 8)] for k in range(5)]
    for indices, mask in found:
        assert mask.sum(1).tolist() == [8, 7, 7]
        for c in range(CLASSES):
            assert np.all(Y[indices[c]] == c)
            assert len(set(indices[c][mask[c]].tolist())) == mask[c].sum()
    assert len({tuple(indices[0].tolist()) for indices, _ in found}) == 5
    everything, _ = draw(jax.random.key(0), data64(), None, ALL)
    assert sorted(np.asarray(everything)[0].tolist()) == list(range(len(X)))


IMAGES = RNG.integers(0, 256, size=(12, 8, 8, 2)).astype(np.uint8)
LABELS = (np.arange(12) % 3).astype(np.int32)
PICTURES = Dataset.from_arrays(IMAGES, LABELS)
NET = bnn(ConvNet(depth=1, width=4), PICTURES)
WHOLE = arrays(PICTURES.train.x, LABELS, np.ones(12, np.float32))


@pytest.mark.parametrize("build", [distribution_matching, gradient_matching])
def test_the_same_augmentation_meets_both_sides(build):
    """A coreset that is the data has nothing to learn, whatever the draw."""
    augment = Augmentation("crop")
    of_experts = {"window": SnapshotWindow(0)} if build is gradient_matching else {}
    objective, data = build(NET, augment=augment, **of_experts), DeviceData.from_dataset(PICTURES)
    snapshots = (quick(NET.init)(jax.random.key(9)),) if of_experts else ()
    for key in range(4):
        _, _, info = step(objective, WHOLE, data, snapshots, key)
        # The cosine of a vector with itself falls short of one by 1e-6 over its squared length.
        assert abs(float(info["loss"])) < (0.05 if of_experts else 1e-8)
        _, _, moved = step(objective, WHOLE._replace(inputs=WHOLE.inputs[::-1]), data, snapshots, key)
        assert float(moved["loss"]) > 20 * abs(float(info["loss"])) + 1e-4


def released(u, w, lam):
    """The loss of the code, but for cross-entropy; CLIP as the code writes it."""
    total = 0.0
    for k, mean in zip(MEMBERS, class_means(u, w), strict=True):
        real = X[k]
        gap, sigma = mean - real.mean(0), np.exp(real.std(0, ddof=1))
        density = np.exp(-0.5 * (gap / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
        p, q = (np.exp(m) / np.exp(m).sum() for m in (mean, real.mean(0)))
        shift = (p.mean() - q.mean()) / q.std(ddof=1)
        clip = (shift - np.clip(shift, 0, 1)) ** 2
        assert clip < 1e-25
        total += -np.sum(np.log(density)) + lam * 0.5 * np.sum(np.abs(gap)) + (1 - lam) * clip
    return total


def test_bacon_as_released():
    with jax.enable_x64(True):
        gradient, _, info = step(BACON, arrays(v=SOFT))
    assert float(info["clip"]) == 0.0
    assert "cross_entropy" not in info  # fresh networks have no say in it
    np.testing.assert_allclose(info["loss"], released(U, W, 0.8), rtol=1e-10)
    wanted = differences(lambda u, w: released(u, w, 0.8), (U, W))
    np.testing.assert_allclose(gradient["inputs"], wanted[0], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(gradient["weights"], wanted[1], rtol=1e-5, atol=1e-8)


def test_bacon_weighs_the_cross_entropy_by_the_accuracy_in_percent():
    always_zero = {"kernel": jnp.zeros((D, CLASSES)), "bias": jnp.asarray([1.0, 0.0, 0.0])}
    everything = DeviceData(jnp.asarray(X), jnp.zeros(len(X), jnp.int32), Float64())  # accuracy of 100 %
    objective = bacon(MODEL, variant="released", window=SnapshotWindow(0))
    _, _, info = step(objective, arrays(v=np.zeros(6, np.int32)), everything, (always_zero,))
    np.testing.assert_allclose(info["cross_entropy"], np.log(np.e + 2) - 1, rtol=1e-5)
    rest = info["likelihood"] + 0.8 * info["variation"]
    np.testing.assert_allclose(info["loss"] - rest, 0.5 * 100 * info["cross_entropy"], rtol=1e-4)
    assert bacon(MODEL, variant="released", cross_entropy=0.1).settings["cross_entropy"] == 0.1


def test_bacon_with_priors_on_the_images():
    """The variant "paper" on uint8 images, whose range of pixels is that of 0 and 255."""
    mean, std = np.array([0.4, 0.6], np.float32), np.array([0.2, 0.3], np.float32)
    prep = Preprocessing(1 / 255, mean, std)
    model = Model.from_numpyro(softmax_program).bind(IMAGES, LABELS)
    u = RNG.normal(scale=3.0, size=(3, 8, 8, 2)).astype(np.float32)
    objective = bacon(model, weight=0.3, likelihood_scale=2.0, batch_size=ALL)
    data = DeviceData(jnp.asarray(IMAGES), jnp.asarray(LABELS), prep)
    _, _, info = step(objective, arrays(u, np.arange(3, dtype=np.int32), np.ones(3, np.float32)), data)
    real = (IMAGES / 255.0 - mean) / std
    gaps = np.stack([(u[c] - real[c::3].mean(0)).ravel() for c in range(3)])
    likelihood = 0.5 * np.sum(gaps**2) / 4 + gaps.size * (np.log(2) + 0.5 * np.log(2 * np.pi))
    low, high = -mean / std, (1 - mean) / std
    outside = np.maximum(u - high, 0) + np.maximum(low - u, 0)
    variation = sum(np.abs(np.diff(u, axis=1)).mean((1, 2, 3)) + np.abs(np.diff(u, axis=2)).mean((1, 2, 3)))
    clip = sum((outside**2).mean((1, 2, 3)))
    np.testing.assert_allclose(info["likelihood"], likelihood, rtol=1e-4)
    np.testing.assert_allclose(info["variation"], variation, rtol=1e-5)
    np.testing.assert_allclose(info["clip"], clip, rtol=1e-4)
    np.testing.assert_allclose(info["loss"], likelihood + 0.3 * variation + 0.7 * clip, rtol=1e-4)


def bilinear(side):
    """(side, side / 2): the weights of half as many pixels in an axis twice as long, by hand."""
    places = (np.arange(side) + 0.5) / 2 - 0.5
    gaps = np.abs(places[:, None] - np.arange(side // 2))
    weights = np.maximum(1 - gaps, 0.0)
    return weights / weights.sum(1, keepdims=True)


def test_bacon_with_soft_targets_and_four_images_a_point():
    """The released loss, cross-entropy and all, of the decoded images, and its gradient in everything."""
    real = IMAGES[..., :1] / 255.0 - 0.4
    u = RNG.normal(size=(4, 8, 8, 1))
    hard = np.array([0, 1, 2, 1])
    soft = 0.8 * np.eye(3)[hard] + 0.2 * RNG.dirichlet(np.ones(3), size=4)
    w = np.array([1.0, 2.0, 0.5, 3.0])
    theta = {"kernel": np.eye(D)[:, :3], "bias": np.zeros(3)}  # the greatest of the first three pixels
    labels = real.reshape(12, 64)[:, :3].argmax(1).astype(np.int32)  # so that the accuracy is 100 %
    assert np.bincount(labels).min() > 1

    def loss(u, v, w):
        quarters = [u[:, :4, :4], u[:, 4:, :4], u[:, :4, 4:], u[:, 4:, 4:]]
        images = np.stack([np.einsum("rp,npqc,sq->nrsc", bilinear(8), q, bilinear(8)) for q in quarters], axis=1)
        images = images.reshape(4, 4, 64)  # stored image, quarter, features
        logits = images[..., :3]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        entropy = -np.einsum("nqc,nc->n", log_p, v) / 4
        total = 0.0
        for c in range(3):
            own, data = hard == c, real.reshape(12, 64)[labels == c]
            gap = np.average(images[own].mean(1), axis=0, weights=w[own]) - data.mean(0)
            sigma = np.exp(data.std(0, ddof=1))
            total += np.sum(np.log(sigma) + 0.5 * (gap / sigma) ** 2 + 0.5 * np.log(2 * np.pi))
            total += 0.8 * 0.5 * np.abs(gap).sum() + 0.5 * 100 * np.average(entropy[own], weights=w[own])
        return total

    with jax.enable_x64(True):
        model = Model.from_numpyro(softmax_program).bind(real, labels)
        objective = bacon(model, variant="released", window=SnapshotWindow(0), formation=2, batch_size=ALL, free=LEAVES)
        data = DeviceData(jnp.asarray(real), jnp.asarray(labels), Float64())
        point = Rows(*map(jnp.asarray, (u, soft, w)))
        gradient, _, info = step(objective, point, data, (jax.tree.map(jnp.asarray, theta),))
    np.testing.assert_allclose(info["loss"], loss(u, soft, w), rtol=1e-10)
    for i, name in enumerate(LEAVES):
        leaves = [u, soft, w]
        for index in list(np.ndindex(*leaves[i].shape))[:: 37 if name == "inputs" else 1]:
            ends = []
            for sign in (1e-6, -1e-6):
                leaves = [leaf.copy() for leaf in (u, soft, w)]
                leaves[i][index] += sign
                ends.append(loss(*leaves))
            np.testing.assert_allclose(gradient[name][index], (ends[0] - ends[1]) / 2e-6, rtol=2e-5, atol=1e-6)


REGRESSION = linear_regression(noise_scale=0.5).bind(X, X[:, 0])
AHEAD = SnapshotWindow(0, None, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradient_matching(MODEL, distance="l1"), "distance='l1' is unknown; use one of 'cosine', 'squared'"),
        (lambda: gradient_matching(MODEL, num_outer=0), "num_outer must be at least 1"),
        (lambda: gradient_matching(MODEL, num_inner_steps=0), "num_inner_steps must be at least 1"),
        (lambda: gradient_matching(MODEL, inner_learning_rate=0.0), "inner_learning_rate must be a positive"),
        (lambda: gradient_matching(MODEL, batch_size=0), "batch_size must be at least 1"),
        (lambda: gradient_matching(MODEL, free=("pixels",)), "free must name some of"),
        (lambda: gradient_matching(MODEL, window=AHEAD), "window must name one snapshot"),
        (lambda: gradient_matching(REGRESSION, distance="squared"), "by_class=True needs classes.*by_class=False"),
        (lambda: gradient_matching(REGRESSION, by_class=False), "distance='cosine' compares.*distance='squared'"),
        (lambda: distribution_matching(MODEL, batch_size=0), "batch_size must be at least 1"),
        (lambda: distribution_matching(MODEL, free=("inputs", "targets")), "no gradient in targets"),
        (lambda: distribution_matching(logistic_regression(num_classes=3).bind(X, Y)), "needs features"),
        (lambda: distribution_matching(bnn(MLP(), input_shape=(4,), likelihood="gaussian")), "needs classes"),
        (lambda: bacon(NET, variant="code"), "variant='code' is unknown"),
        (lambda: bacon(NET, weight=1.5), "weight must be from 0 to 1; got 1.5"),
        (lambda: bacon(NET, likelihood_scale=0.0), "likelihood_scale must be a positive"),
        (lambda: bacon(NET, cross_entropy=-0.1), "cross_entropy must not be negative; got -0.1"),
        (lambda: bacon(NET, formation=3), "formation must be 1 or 2; got 3"),
        (lambda: bacon(NET, batch_size=-1), "batch_size must be at least 1"),
        (lambda: bacon(NET, window=AHEAD), "window must name one snapshot"),
        (lambda: bacon(NET, free="targets"), "without cross_entropy there is no gradient in targets"),
        (lambda: bacon(MODEL), "need images"),
        (lambda: step(distribution_matching(MODEL), arrays(v=V + 1)), "classes from 0 to 2; got 1 to 3"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
