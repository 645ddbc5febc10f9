"""Everything derived from a program equals what NumPyro says of it."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import linen, nnx
from numpyro.contrib.module import random_flax_module
from numpyro.infer.util import potential_energy

from pseudocoreset.models import (
    MLP,
    ConvNet,
    Model,
    bnn,
    gaussian_location,
    linear_regression,
    logistic_regression,
    poisson_regression,
)
from tests.marks import slow_but

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(7, 8, 8, 1)).astype(np.float32)
FEATURES = RNG.normal(size=(7, 4)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2, 1], np.int32)
BINARY = np.array([0, 1, 1, 0, 1, 0, 1], np.int32)
REAL = RNG.normal(size=7).astype(np.float32)
COUNTS = np.array([0, 3, 1, 2, 5, 0, 1], np.int32)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.hidden(x)))


def hierarchical(x, y=None):
    """Transforms of several kinds: positive scale, simplex, ordered, plate of groups."""
    tau = numpyro.sample("tau", dist.HalfCauchy(1.0))
    mix = numpyro.sample("mix", dist.Dirichlet(jnp.ones(4)))
    with numpyro.plate("groups", 3):
        effect = numpyro.sample("effect", dist.Normal(0.0, tau))
    group = (x[:, 0] > 0).astype(int) + (x[:, 0] > 0.5).astype(int)
    f = numpyro.deterministic("f", x @ mix + effect[group])
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=f), obs=y)


def poisson(x, y=None):
    w = numpyro.sample("w", dist.StudentT(3.0, 0.0, 1.0).expand((4,)).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Poisson(jnp.exp(0.1 * x @ w)), obs=y)


def users_flax_program(x, y=None):
    net = random_flax_module("net", linen.Dense(3), prior=dist.Normal(0.0, 1.0), input_shape=(1, 4))
    f = numpyro.deterministic("f", net(x))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=f), obs=y)


def networks(norm):
    return bnn(ConvNet(depth=2, width=8, norm=norm), input_shape=(8, 8, 1), num_outputs=3)


MODELS = {
    **{f"convnet_{n}": (networks, n, IMAGES, LABELS) for n in ("instance", "group", "layer", "batch", "none")},
    "mlp": (bnn, (MLP((6,)), dict(input_shape=(4,), num_outputs=3)), FEATURES, LABELS),
    "mlp_unit_prior": (
        bnn,
        (MLP((6,)), dict(input_shape=(4,), num_outputs=3, prior_scale=1.0)),
        FEATURES,
        LABELS,
    ),
    "mlp_regression": (bnn, (MLP((6,)), dict(input_shape=(4,), likelihood="gaussian")), FEATURES, REAL),
    "nnx": (bnn, (NnxNet(nnx.Rngs(0)), dict(input_shape=(4,), num_outputs=3)), FEATURES, LABELS),
    "nnx_factory": (
        bnn,
        (lambda key: NnxNet(nnx.Rngs(key)), dict(input_shape=(4,), num_outputs=3)),
        FEATURES,
        LABELS,
    ),
    "equinox": (
        bnn,
        (equinox.nn.MLP(4, 3, 6, 1, key=jax.random.key(3)), dict(input_shape=(4,), num_outputs=3)),
        FEATURES,
        LABELS,
    ),
    "softmax_regression": (logistic_regression, ((), dict(num_classes=3)), FEATURES, LABELS),
    "logistic_regression": (logistic_regression, ((), dict(num_classes=2)), FEATURES, BINARY),
    "linear_regression": (linear_regression, ((), dict(noise_scale=0.5, prior_mean=0.3)), FEATURES, REAL),
    "linear_regression_unknown_noise": (linear_regression, ((), dict(intercept=False)), FEATURES, REAL),
    "poisson_regression": (poisson_regression, ((), dict(prior_scale=0.3)), FEATURES, COUNTS.astype(np.float32)),
    "gaussian_location": (gaussian_location, ((), dict(noise_scale=2.0)), FEATURES, REAL),
    "hierarchical": (Model.from_numpyro, (hierarchical, {}), FEATURES, BINARY),
    "poisson": (Model.from_numpyro, (poisson, {}), FEATURES, COUNTS),
    "random_flax_module": (Model.from_numpyro, (users_flax_program, {}), FEATURES, LABELS),
}


FAST = [name for name in MODELS if name not in ("convnet_group", "convnet_none", "mlp_unit_prior", "nnx_factory")]


@pytest.fixture(params=slow_but(MODELS, *FAST))
def case(request):
    build, arguments, x, y = MODELS[request.param]
    if isinstance(arguments, str):
        model = build(arguments)
    else:
        *positional, keywords = arguments
        model = build(*[p for p in positional if p != ()], **keywords)
    return model.bind(x, y), x, y


def test_densities_are_numpyros(case):
    model, x, y = case
    params = model.init(jax.random.key(1))
    ours = model.log_prior(params) + jnp.sum(model.log_likelihood(params, x, y))
    # A program with a flax module asks for a key even though every parameter is given.
    program = numpyro.handlers.seed(model.program, jax.random.key(0))
    np.testing.assert_allclose(ours, -potential_energy(program, (x, y), {}, params), rtol=2e-5)


def test_likelihood_is_one_number_a_datum(case):
    model, x, y = case
    params = model.init(jax.random.key(1))
    whole = model.log_likelihood(params, x, y)
    assert whole.shape == (7,)
    order = np.array([3, 0, 6, 1, 2, 5, 4])
    np.testing.assert_allclose(model.log_likelihood(params, x[order], y[order]), whole[order], rtol=1e-4, atol=1e-5)


def test_function_values_carry_the_likelihood(case):
    model, x, y = case
    if not model.has_function:
        with pytest.raises(ValueError, match="deterministic"):
            model.apply(model.init(jax.random.key(1)), x)
        return
    params = model.init(jax.random.key(1))
    f = model.apply(params, x)
    assert f.shape == (7, model.num_outputs)
    np.testing.assert_allclose(
        model.function_log_likelihood(params, f, x, y), model.log_likelihood(params, x, y), rtol=1e-5, atol=1e-6
    )
    if model.num_classes is not None:
        probabilities = model.function_probabilities({}, f, x)
        assert probabilities.shape == (7, model.num_classes)
        np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(
            jnp.log(probabilities[jnp.arange(7), y]), model.log_likelihood(params, x, y), rtol=1e-4, atol=1e-5
        )


def test_soft_targets_are_expected_log_likelihoods(case):
    model, x, y = case
    params = model.init(jax.random.key(1))
    if model.num_classes is None:
        with pytest.raises(ValueError, match="targets have shape"):
            model.log_likelihood(params, x, jnp.ones((7, 2)) / 2)
        return
    each = jnp.stack([model.log_likelihood(params, x, jnp.full(7, c)) for c in range(model.num_classes)], -1)
    soft = jax.nn.softmax(jax.random.normal(jax.random.key(2), (7, model.num_classes)))
    np.testing.assert_allclose(model.log_likelihood(params, x, soft), (soft * each).sum(-1), rtol=1e-4)
    hard = jax.nn.one_hot(y, model.num_classes)
    np.testing.assert_allclose(model.log_likelihood(params, x, hard), each[jnp.arange(7), y], rtol=1e-5, atol=1e-6)


def test_the_reference_convnet_has_its_published_size():
    model = bnn(ConvNet(depth=3, width=128, norm="instance"), input_shape=(32, 32, 3), num_outputs=10)
    assert model.num_params == 320_010


def test_images_of_28_pixels_are_padded_to_32():
    model = bnn(ConvNet(depth=3, width=4), input_shape=(28, 28, 1), num_outputs=10)
    assert model.init(jax.random.key(0))["network/head.kernel"].shape == (4 * 4 * 4, 10)


@pytest.mark.parametrize("norm", ["instance", "group", "layer", "batch"])
def test_norms_equal_flaxs(norm):
    from pseudocoreset.models.layers import Norm

    x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (5, 4, 4, 8))
    reference = {
        "instance": linen.GroupNorm(num_groups=8, epsilon=1e-5),
        "group": linen.GroupNorm(num_groups=4, epsilon=1e-5),
        "layer": linen.LayerNorm(reduction_axes=(1, 2, 3), feature_axes=(1, 2, 3), epsilon=1e-5),
        "batch": linen.BatchNorm(use_running_average=False, epsilon=1e-5),
    }[norm]
    ours, theirs = Norm(norm), reference
    ours_out = ours.apply(ours.init(jax.random.key(1), x), x)
    variables = theirs.init(jax.random.key(1), x)
    theirs_out = theirs.apply(variables, x, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(ours_out, theirs_out, atol=1e-4)


@pytest.mark.parametrize("norm", ["instance", "group", "layer", "batch", "none"])
def test_norm_relu_and_pooling_together_are_the_same_as_one_after_the_other(norm):
    """In value and in every kind of derivative, under ``vmap`` too."""
    from flax.core import unfreeze

    from pseudocoreset.models.layers import Norm

    def apart(variables, x):
        return linen.avg_pool(jax.nn.relu(Norm(norm).apply(variables, x)), (2, 2), (2, 2))

    def together(variables, x):
        return Norm(norm).apply(variables, x, pooled=True)

    with jax.enable_x64():
        x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (3, 4, 6, 7, 8))
        made = unfreeze(Norm(norm).init(jax.random.key(1), x[0]))
        keys = iter(jax.random.split(jax.random.key(2), 9))
        variables = jax.tree.map(lambda a: a + jax.random.normal(next(keys), a.shape), made)
        direction = jax.tree.map(lambda a: jax.random.normal(next(keys), a.shape), (variables, x[0]))

        def results(block):
            def loss(v, x):
                return jnp.sum(jnp.sin(block(v, x)))

            gradient = jax.grad(loss, (0, 1))
            at = variables, x[0]
            return (
                block(*at),
                jax.jvp(block, at, direction)[1],
                gradient(*at),
                jax.jvp(gradient, at, direction)[1],
                jax.vmap(gradient, (None, 0))(variables, x),
            )

        expected, found = results(apart), results(together)
        assert float(jnp.abs(found[1]).max()) > 0.1
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found, expected)


def test_initialisation_is_uniform_in_the_fan_in():
    model = bnn(ConvNet(depth=1, width=64), input_shape=(8, 8, 3), num_outputs=10)
    params = model.init(jax.random.key(0))
    for name, fan_in in (("network/conv_0", 27), ("network/head", 64 * 16)):
        kernel = params[f"{name}.kernel"]
        bound = fan_in**-0.5
        assert float(jnp.abs(kernel).max()) <= bound
        np.testing.assert_allclose(jnp.std(kernel), bound / 3**0.5, rtol=0.05)
        assert float(jnp.abs(params[f"{name}.bias"]).max()) <= bound
    assert jnp.all(params["network/norm_0.scale"] == 1)


def test_initial_weights_are_the_generators_numbers_in_order():
    """Drawn flat, which compiles faster: the same numbers as drawn in the shape of the weights."""
    from pseudocoreset.models.layers import uniform_fan_in

    key, shape = jax.random.key(5), (3, 3, 2, 7)
    expected = jax.random.uniform(key, shape, minval=-1 / 3, maxval=1 / 3)
    np.testing.assert_array_equal(uniform_fan_in(9)(key, shape), expected)


def test_modules_made_already_start_differently_with_each_key():
    model = bnn(NnxNet(nnx.Rngs(0)), input_shape=(4,), num_outputs=3)
    first, second = (model.init(jax.random.key(i))["network/hidden.kernel"] for i in range(2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(np.sort(first.ravel()), np.sort(second.ravel()))


def test_a_prior_draw_gives_function_values_of_order_one():
    model = bnn(ConvNet(depth=3, width=32), input_shape=(16, 16, 3), num_outputs=10)
    trace = numpyro.handlers.trace(numpyro.handlers.seed(model.program, jax.random.key(0)))
    f = trace.get_trace(RNG.normal(size=(50, 16, 16, 3)).astype(np.float32))["f"]["value"]
    assert 0.2 < float(jnp.std(f)) < 5.0


def local_latent(x, y=None):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(z, 1), obs=y)


def two_observed(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("a", dist.Normal(w, 1), obs=y)
        numpyro.sample("b", dist.Normal(w, 1), obs=y)


def summed(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(w * jnp.ones(x.shape[0]), 1).to_event(1), obs=y)


def discrete(x, y=None):
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(k, 1), obs=y)


def improper(x, y=None):
    w = numpyro.sample("w", dist.ImproperUniform(dist.constraints.real, (), ()))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(w, 1), obs=y)


def nothing(x, y=None):
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(0, 1), obs=y)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (local_latent, "inside the plate"),
        (summed, "one log-probability per datum"),
        (discrete, "discrete"),
        (improper, "proper prior"),
        (nothing, "no latent site"),
    ],
)
def test_programs_that_do_not_fit_are_refused(program, message):
    with pytest.raises(ValueError, match=message):
        Model.from_numpyro(program).bind(FEATURES, REAL)


class WithState(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.BatchNorm(use_running_average=False)(linen.Dense(3)(x))


class NnxWithState(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(x))


SHAPES = dict(input_shape=(4,), num_outputs=3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bnn(WithState(), **SHAPES), ValueError, "mutable state.*batch_stats"),
        (lambda: bnn(NnxWithState(nnx.Rngs(0)), **SHAPES), ValueError, "mutable state"),
        (lambda: bnn(3, **SHAPES), TypeError, "network must be"),
        (lambda: bnn(MLP()), ValueError, "give data, or input_shape"),
        (lambda: bnn(MLP(), prior_scale=-1.0, **SHAPES), ValueError, "prior_scale"),
        (lambda: bnn(MLP(), prior_scale="unit", **SHAPES), ValueError, "prior_scale"),
        (lambda: bnn(MLP(), likelihood="poisson", **SHAPES), ValueError, "likelihood='poisson'"),
        (lambda: bnn(MLP(num_outputs=2), **SHAPES), ValueError, "maps inputs"),
        (lambda: bnn(ConvNet(norm="spectral"), input_shape=(8, 8, 1), num_outputs=3), ValueError, "spectral"),
        (lambda: bnn(ConvNet(depth=4), input_shape=(8, 8, 1), num_outputs=3), ValueError, "depth=4"),
        (lambda: logistic_regression(), ValueError, "num_classes"),
        (lambda: Model.from_numpyro("program"), TypeError, "program must be a function"),
        (lambda: Model.from_numpyro(poisson).num_params, ValueError, "bind"),
        (lambda: bnn(MLP(), **SHAPES).bind(IMAGES, LABELS), ValueError, "features of shape"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_likelihood_must_use_the_function_values():
    """A program that goes on with its own variable would give predictions that ignore the inputs."""

    def program(x, y=None):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand((2,)).to_event(1))
        logits = x @ theta
        numpyro.deterministic("f", logits)
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    with pytest.raises(ValueError, match="does not depend on its site 'f'; use what the site returns"):
        Model.from_numpyro(program).bind(np.zeros((5, 2), np.float32), np.zeros(5, np.int32))


@pytest.mark.parametrize(
    "probabilities", [jax.nn.softmax, lambda f: jax.nn.softmax(f / jnp.linalg.norm(f, axis=1, keepdims=True))]
)
def test_a_likelihood_that_does_not_see_a_shift_or_scale_of_the_function_values_uses_them(probabilities):
    def program(x, y=None):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand((2, 3)).to_event(2))
        f = numpyro.deterministic("f", x @ theta)
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Categorical(probs=probabilities(f)), obs=y)

    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    model = Model.from_numpyro(program).bind(x, np.arange(6) % 3)
    params = {"theta": jnp.asarray([[0.5, -1.0, 0.2], [1.0, 0.3, -0.4]])}
    expected = np.log(probabilities(x @ params["theta"]))[np.arange(6), np.arange(6) % 3]
    np.testing.assert_allclose(model.log_likelihood(params, x, jnp.arange(6) % 3), expected, rtol=1e-5)


def test_programs_may_observe_their_inputs_or_a_transform_of_their_targets():
    def location(x, y=None):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand((2,)).to_event(1))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(theta, 1.0).to_event(1), obs=x)

    def logarithm(x, y=None):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(x)):
            numpyro.sample("log_y", dist.Normal(theta, 1.0), obs=None if y is None else jnp.log(y))

    x = np.array([[1.0, 2.0], [-1.0, 0.5]], np.float32)
    y = np.array([2.0, 3.0], np.float32)
    theta = jnp.array([0.5, -0.5])
    seen = Model.from_numpyro(location).bind(x, y).log_likelihood({"theta": theta}, x, y)
    np.testing.assert_allclose(seen, -0.5 * np.sum((x - theta) ** 2, axis=1) - np.log(2 * np.pi), rtol=1e-6)
    seen = Model.from_numpyro(logarithm).bind(x, y).log_likelihood({"theta": jnp.array(0.3)}, x, y)
    np.testing.assert_allclose(seen, -0.5 * (np.log(y) - 0.3) ** 2 - 0.5 * np.log(2 * np.pi), rtol=1e-6)


def tempered(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand((4,)).to_event(1))
    numpyro.deterministic("mean", jnp.mean(x @ w))
    numpyro.deterministic("square", w[0] ** 2)
    scale = jnp.where(y == 1, 5.0, 1.0) if y is not None else 1.0
    with numpyro.plate("data", 1000, subsample_size=x.shape[0]), numpyro.handlers.scale(scale=scale):
        numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def flipped(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand((4,)).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=None if y is None else 1 - y)


def test_class_probabilities_of_one_class_score_as_its_label():
    """The program may scale or mask a row by its target, and its plate may be subsampled."""
    model = Model.from_numpyro(tempered).bind(FEATURES, BINARY)
    params = model.init(jax.random.key(0))
    hard = model.log_likelihood(params, FEATURES, BINARY)
    np.testing.assert_allclose(
        model.log_likelihood(params, FEATURES, np.eye(2, dtype=np.float32)[BINARY]), hard, rtol=1e-5
    )
    f = FEATURES @ np.asarray(params["w"])
    by_hand = np.where(BINARY == 1, 5.0, 1.0) * (BINARY * f - np.logaddexp(0, f))
    np.testing.assert_allclose(hard, by_hand, rtol=1e-4, atol=1e-5)


def test_a_program_that_changes_its_targets_has_no_classes():
    model = Model.from_numpyro(flipped).bind(FEATURES, BINARY)
    assert model.num_classes is None
    with pytest.raises(ValueError, match="targets have shape"):
        model.log_likelihood(model.init(jax.random.key(0)), FEATURES, np.eye(2, dtype=np.float32)[BINARY])


def test_deterministic_sites_that_depend_on_the_rows_are_not_shared():
    assert Model.from_numpyro(tempered).bind(FEATURES, BINARY).deterministic == ("square",)


def test_parts_of_a_vector_may_be_masked():
    seen = np.array([[True, False], [True, True], [False, False], [True, True]] * 3)
    counts = np.where(seen, np.arange(24).reshape(12, 2) % 5, -1).astype(np.float32)

    def program(x, y=None):
        rate = numpyro.sample("rate", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Poisson(rate * jnp.ones((x.shape[0], 2))).mask(x > 0).to_event(1), obs=y)

    model = Model.from_numpyro(program).bind(seen.astype(np.float32), counts)
    found = model.log_likelihood({"rate": jnp.log(1.5)}, seen.astype(np.float32), counts)
    by_hand = np.where(seen, dist.Poisson(1.5).log_prob(np.maximum(counts, 0)), 0.0).sum(1)
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)


def test_a_latent_that_multiplies_the_function_is_no_reason_to_refuse():
    def program(x, y=None):
        gain = numpyro.sample("gain", dist.Normal(0.0, 1.0))
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand((4,)).to_event(1))
        f = numpyro.deterministic("f", x @ w)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Bernoulli(logits=gain * f), obs=y)

    assert Model.from_numpyro(program).bind(FEATURES, BINARY).has_function
