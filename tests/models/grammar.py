"""The words of random programs: distributions of observed sites, priors of slopes, effects of groups, scales of noise.

Each word is a piece of source of a NumPyro program beside the same thing in NumPy and SciPy. In a piece of source
``{f}`` stands for the predictor, ``{s}`` for the scale of the noise, ``{shape}`` and ``{ndim}`` for the shape of the
slopes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

__all__ = ["FAMILIES", "GROUPS", "NOISE", "SLOPES", "Family", "Latent"]

LOWER = np.array([[1.0, 0.0], [0.5, 0.8]])


@dataclass(frozen=True)
class Family:
    """A distribution of the targets.

    Attributes:
        source: the distribution as source, or whole lines that use ``obs=y`` where it is more than one site.
        draw: ``(rng, f, s, columns) -> y``.
        log_prob: ``(y, f, s, columns, values) -> (n,)`` in SciPy.
        outputs: width of the predictor; 1 is a vector (n,).
        classes: number of classes whose probabilities the model must know, or 0.
        columns: integer or indicator columns of the inputs that it needs.
        latents: lines with its own latent sites.
        kind: "real", "count" or "class": which types of targets are tried.
    """

    source: str
    draw: Callable[..., Any]
    log_prob: Callable[..., Any]
    outputs: int = 1
    classes: int = 0
    columns: tuple[str, ...] = ()
    latents: tuple[str, ...] = ()
    kind: str = "real"

    @property
    def has_noise(self) -> bool:
        return "{s}" in self.source


@dataclass(frozen=True)
class Latent:
    """Latent sites: their lines of source, and ``value(values, columns)``, what the lines compute, in NumPy."""

    lines: tuple[str, ...]
    value: Callable[..., Any]
    any_shape: bool = False
    reparam: str = ""


def two_sided(p: Any) -> Any:
    return np.stack([1 - p, p], axis=-1)


def ordered_probabilities(f: Any, cuts: Any) -> Any:
    below = special.expit(np.asarray(cuts) - np.asarray(f)[:, None])
    edges = np.concatenate([np.zeros_like(below[:, :1]), below, np.ones_like(below[:, :1])], axis=1)
    return np.diff(edges, axis=1)


def pick(table: Any, y: Any) -> Any:
    return np.log(np.take_along_axis(table, np.asarray(y, int)[:, None], axis=1)[:, 0])


def categorical(rng: Any, f: Any) -> Any:
    return np.array([rng.choice(f.shape[1], p=row) for row in special.softmax(f, axis=1)])


def censored(y: Any, f: Any, event: Any) -> Any:
    rate = np.exp(-f)
    return np.where(event > 0, stats.expon.logpdf(y, scale=1 / rate), -rate * y)


def mixed(y: Any, f: Any) -> Any:
    return np.logaddexp(np.log(0.3) + stats.norm.logpdf(y, f, 0.7), np.log(0.7) + stats.norm.logpdf(y, f + 2, 0.7))


def zero_inflated(y: Any, f: Any) -> Any:
    rest = np.log(0.7) + stats.poisson.logpmf(y, np.exp(f))
    return np.where(y == 0, np.logaddexp(np.log(0.3), rest), rest)


def negative_binomial(f: Any) -> Any:
    return stats.nbinom(3.0, 3.0 / (3.0 + np.exp(f)))


CENSORED = """with handlers.mask(mask=event > 0):
    numpyro.sample("y", dist.Exponential(jnp.exp(-({f}))), obs=y)
if y is not None:
    numpyro.factor("censored", jnp.where(event > 0, 0.0, -jnp.exp(-({f})) * y))"""

CUTS = """cuts = numpyro.sample(
    "cuts",
    dist.TransformedDistribution(
        dist.Normal(0.0, 1.0).expand([2]).to_event(1), dist.transforms.OrderedTransform()
    ),
)"""

FAMILIES = {
    "normal": Family(
        "dist.Normal({f}, {s})",
        lambda r, f, s, c: r.normal(f, s),
        lambda y, f, s, c, v: stats.norm.logpdf(y, f, s),
    ),
    "student": Family(
        "dist.StudentT(4.0, {f}, {s})",
        lambda r, f, s, c: f + s * r.standard_t(4, f.shape),
        lambda y, f, s, c, v: stats.t.logpdf(y, 4, f, s),
    ),
    "laplace": Family(
        "dist.Laplace({f}, {s})",
        lambda r, f, s, c: r.laplace(f, s),
        lambda y, f, s, c, v: stats.laplace.logpdf(y, f, s),
    ),
    "log-normal": Family(
        "dist.LogNormal({f}, {s})",
        lambda r, f, s, c: r.lognormal(f, s),
        lambda y, f, s, c, v: stats.lognorm.logpdf(y, s, scale=np.exp(f)),
    ),
    "truncated normal": Family(
        "dist.TruncatedNormal({f}, {s}, low=0.0)",
        lambda r, f, s, c: np.abs(r.normal(f, s)),
        lambda y, f, s, c, v: stats.norm.logpdf(y, f, s) - stats.norm.logcdf(f / s),
    ),
    "gamma": Family(
        "dist.Gamma(2.0, 2.0 / jnp.exp({f}))",
        lambda r, f, s, c: r.gamma(2.0, np.exp(f) / 2),
        lambda y, f, s, c, v: stats.gamma.logpdf(y, 2.0, scale=np.exp(f) / 2),
    ),
    "weibull": Family(
        "dist.Weibull(jnp.exp({f}), 1.5)",
        lambda r, f, s, c: np.exp(f) * r.weibull(1.5, f.shape),
        lambda y, f, s, c, v: stats.weibull_min.logpdf(y, 1.5, scale=np.exp(f)),
    ),
    "beta": Family(
        "dist.Beta(5 * jax.nn.sigmoid({f}), 5 * jax.nn.sigmoid(-({f})))",
        lambda r, f, s, c: r.beta(3, 3, f.shape),
        lambda y, f, s, c, v: stats.beta.logpdf(y, 5 * special.expit(f), 5 * special.expit(-f)),
    ),
    "circular": Family(
        "dist.VonMises({f}, 2.0)",
        lambda r, f, s, c: r.vonmises(0.5, 2.0, f.shape),
        lambda y, f, s, c, v: stats.vonmises.logpdf(y, 2.0, f),
    ),
    "mixture": Family(
        "dist.MixtureSameFamily(\n"
        "    dist.Categorical(probs=jnp.array([0.3, 0.7])), dist.Normal(jnp.stack([{f}, {f} + 2.0], -1), 0.7)\n)",
        lambda r, f, s, c: r.normal(f + 2.0 * r.integers(0, 2, f.shape), 0.7),
        lambda y, f, s, c, v: mixed(y, f),
    ),
    "censored by a factor": Family(
        CENSORED,
        lambda r, f, s, c: r.exponential(np.exp(f)),
        lambda y, f, s, c, v: censored(y, f, c["event"]),
        columns=("event",),
    ),
    "censored": Family(
        # NumPyro takes the logarithm of 1 - cdf, which has few digits far out; so the rate is kept near one.
        "dist.RightCensoredDistribution(dist.Exponential(jnp.exp(-jnp.tanh({f}))), censored=1 - event)",
        lambda r, f, s, c: r.exponential(np.exp(f)),
        lambda y, f, s, c, v: censored(y, np.tanh(f), c["event"]),
        columns=("event",),
    ),
    "poisson": Family(
        "dist.Poisson(jnp.exp({f}))",
        lambda r, f, s, c: r.poisson(np.exp(f)),
        lambda y, f, s, c, v: stats.poisson.logpmf(y, np.exp(f)),
        kind="count",
    ),
    "negative binomial": Family(
        "dist.NegativeBinomial2(jnp.exp({f}), 3.0)",
        lambda r, f, s, c: negative_binomial(f).rvs(random_state=r),
        lambda y, f, s, c, v: negative_binomial(f).logpmf(y),
        kind="count",
    ),
    "zero-inflated": Family(
        "dist.ZeroInflatedPoisson(0.3, jnp.exp({f}))",
        lambda r, f, s, c: r.poisson(np.exp(f)) * r.integers(0, 2, f.shape),
        lambda y, f, s, c, v: zero_inflated(y, f),
        kind="count",
    ),
    "geometric": Family(
        "dist.Geometric(logits={f})",
        lambda r, f, s, c: r.geometric(special.expit(f)) - 1,
        lambda y, f, s, c, v: stats.geom.logpmf(y + 1, special.expit(f)),
        kind="count",
    ),
    "binomial": Family(
        "dist.Binomial(total_count=trials, logits={f})",
        lambda r, f, s, c: r.binomial(c["trials"].astype(int), special.expit(f)),
        lambda y, f, s, c, v: stats.binom.logpmf(y, c["trials"], special.expit(f)),
        columns=("trials",),
        kind="count",
    ),
    "beta-binomial": Family(
        "dist.BetaBinomial(9 * jax.nn.sigmoid({f}), 9 * jax.nn.sigmoid(-({f})), total_count=trials)",
        lambda r, f, s, c: r.binomial(c["trials"].astype(int), special.expit(f)),
        lambda y, f, s, c, v: stats.betabinom.logpmf(y, c["trials"], 9 * special.expit(f), 9 * special.expit(-f)),
        columns=("trials",),
        kind="count",
    ),
    "bernoulli": Family(
        "dist.Bernoulli(logits={f})",
        lambda r, f, s, c: r.binomial(1, special.expit(f)),
        lambda y, f, s, c, v: pick(two_sided(special.expit(f)), y),
        classes=2,
        kind="class",
    ),
    "probit": Family(
        "dist.Bernoulli(probs=0.01 + 0.98 * jax.scipy.special.ndtr({f}))",
        lambda r, f, s, c: r.binomial(1, special.ndtr(f)),
        lambda y, f, s, c, v: pick(two_sided(0.01 + 0.98 * special.ndtr(f)), y),
        classes=2,
        kind="class",
    ),
    "ordered": Family(
        "dist.OrderedLogistic({f}, cuts)",
        lambda r, f, s, c: r.integers(0, 3, f.shape),
        lambda y, f, s, c, v: pick(ordered_probabilities(f, v["cuts"]), y),
        classes=3,
        latents=(CUTS,),
        kind="class",
    ),
    "categorical": Family(
        "dist.Categorical(logits={f})",
        lambda r, f, s, c: categorical(r, f),
        lambda y, f, s, c, v: pick(special.softmax(f, axis=1), y),
        outputs=3,
        classes=3,
        kind="class",
    ),
    "softmax": Family(
        "dist.Categorical(probs=jax.nn.softmax({f}))",
        lambda r, f, s, c: categorical(r, f),
        lambda y, f, s, c, v: pick(special.softmax(f, axis=1), y),
        outputs=3,
        classes=3,
        kind="class",
    ),
    "several normals": Family(
        "dist.Normal({f}, {s}).to_event(1)",
        lambda r, f, s, c: r.normal(f, s),
        lambda y, f, s, c, v: stats.norm.logpdf(y, f, s).sum(1),
        outputs=2,
    ),
    "correlated normals": Family(
        "dist.MultivariateNormal({f}, scale_tril=jnp.array([[1.0, 0.0], [0.5, 0.8]]))",
        lambda r, f, s, c: f + r.normal(size=f.shape) @ LOWER.T,
        lambda y, f, s, c, v: np.array(
            [stats.multivariate_normal.logpdf(a, b, LOWER @ LOWER.T) for a, b in zip(y, f, strict=True)]
        ),
        outputs=2,
    ),
    "several counts": Family(
        "dist.Poisson(jnp.exp({f})).to_event(1)",
        lambda r, f, s, c: r.poisson(np.exp(f)),
        lambda y, f, s, c, v: stats.poisson.logpmf(y, np.exp(f)).sum(1),
        outputs=2,
        kind="count",
    ),
    "several labels": Family(
        "dist.Bernoulli(logits={f}).to_event(1)",
        lambda r, f, s, c: r.binomial(1, special.expit(f)),
        lambda y, f, s, c, v: np.where(np.asarray(y) > 0, special.log_expit(f), special.log_expit(-f)).sum(1),
        outputs=3,
        kind="count",
    ),
    "multinomial": Family(
        "dist.Multinomial(5, logits={f})",
        lambda r, f, s, c: r.multinomial(5, special.softmax(f, axis=1)),
        lambda y, f, s, c, v: np.array(
            [stats.multinomial.logpmf(a, 5, p) for a, p in zip(y, special.softmax(f, axis=1), strict=True)]
        ),
        outputs=3,
        kind="count",
    ),
    "shares": Family(
        "dist.Dirichlet(1.0 + jnp.exp({f}))",
        lambda r, f, s, c: r.dirichlet(np.ones(3), len(f)),
        lambda y, f, s, c, v: np.array([stats.dirichlet.logpdf(a, 1 + np.exp(b)) for a, b in zip(y, f, strict=True)]),
        outputs=3,
    ),
}


def slopes(*lines: str, value: Callable[..., Any] = lambda v, c: v["w"], reparam: str = "") -> Latent:
    return Latent(lines, value, any("{shape}" in line for line in lines), reparam)


def site(distribution: str) -> str:
    return f'w = numpyro.sample("w", {distribution})'


HYPER = 'tau = numpyro.sample("tau", dist.HalfNormal(1.0))'
CORRELATED = 'w = numpyro.sample("w", dist.MultivariateNormal(jnp.zeros(2), scale_tril=sd[:, None] * corr))'
SD = 'sd = numpyro.sample("sd", dist.HalfNormal(1.0).expand([2]).to_event(1))'

SLOPES = {
    "normal": slopes(site("dist.Normal(0.0, 1.0).expand({shape}).to_event({ndim})")),
    "unit of arrays": slopes(site("dist.Normal(jnp.zeros({shape}), 2.0).to_event({ndim})")),
    "without to_event": slopes(site("dist.Normal(0.0, 1.0).expand({shape})")),
    "sample_shape": slopes('w = numpyro.sample("w", dist.Normal(0.0, 1.0), sample_shape=tuple({shape}))'),
    "laplace": slopes(site("dist.Laplace(0.0, 1.0).expand({shape}).to_event({ndim})")),
    "half-normal": slopes(site("dist.HalfNormal(1.0).expand({shape}).to_event({ndim})")),
    "log-normal": slopes(site("dist.LogNormal(0.0, 0.5).expand({shape}).to_event({ndim})")),
    "student of a scale": slopes(HYPER, site("dist.StudentT(3.0, 0.0, tau).expand({shape}).to_event({ndim})")),
    "shrunk": slopes(
        HYPER,
        'lam = numpyro.sample("lam", dist.HalfCauchy(1.0).expand({shape}).to_event({ndim}))',
        'z_w = numpyro.sample("z_w", dist.Normal(0.0, 1.0).expand({shape}).to_event({ndim}))',
        'w = numpyro.deterministic("w", z_w * tau * lam)',
        value=lambda v, c: v["z_w"] * v["tau"] * v["lam"],
    ),
    "bounds as arrays": slopes(site("dist.Uniform(-jnp.ones({shape}), 2.0 * jnp.ones({shape}))")),
    "bounds of numpy": slopes(site("dist.Uniform(np.full(2, -1.0), np.array([1.0, 2.0])).to_event(1)")),
    "bounds as sites": slopes(
        'top = numpyro.sample("top", dist.LogNormal(0.0, 0.3))',
        site("dist.Uniform(-top, top).expand({shape}).to_event({ndim})"),
    ),
    "truncated at a site": slopes(
        'mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))',
        site("dist.TruncatedNormal(mu, 1.0, low=mu - 2.0, high=mu + 1.0).expand({shape}).to_event({ndim})"),
    ),
    "plate of columns": slopes('with numpyro.plate("columns", 2):', "    " + site("dist.Normal(0.0, 1.0)")),
    "simplex": slopes(site("dist.Dirichlet(jnp.ones(2))")),
    "interval": slopes(site("dist.Beta(2.0, 3.0).expand([2]).to_event(1)")),
    "angles": slopes(site("dist.VonMises(0.0, 1.0).expand([2]).to_event(1)")),
    "inverse gamma": slopes(site("dist.InverseGamma(3.0, 2.0).expand([2]).to_event(1)")),
    "log-uniform": slopes(site("dist.LogUniform(jnp.array([0.1, 0.2]), jnp.array([1.0, 3.0])).to_event(1)")),
    "ordered": slopes(
        'w = numpyro.sample("w", dist.TransformedDistribution(',
        "    dist.Normal(0.0, 1.0).expand([2]).to_event(1), dist.transforms.OrderedTransform()))",
    ),
    "correlated": slopes('corr = numpyro.sample("corr", dist.LKJCholesky(2, 2.0))', SD, CORRELATED),
    "correlation matrix": slopes(
        'corr = jnp.linalg.cholesky(numpyro.sample("corr", dist.LKJ(2, 1.5)))', SD, CORRELATED
    ),
    "positive definite": slopes(
        'precision = numpyro.sample("precision", dist.Wishart(4.0, 0.5 * jnp.eye(2)))',
        site("dist.MultivariateNormal(jnp.zeros(2), precision_matrix=precision)"),
    ),
    "walk": slopes(site("dist.GaussianRandomWalk(0.5, num_steps=2)")),
    "sum of zero": slopes(site("dist.ZeroSumNormal(1.0, event_shape=(2,))")),
    "flat": slopes(site("dist.Normal(0.0, 1.0).expand([2]).mask(False).to_event(1)")),
    "off-centre": slopes(
        HYPER,
        site("dist.Normal(0.5, tau).expand({shape}).to_event({ndim})"),
        reparam='{"w": LocScaleReparam(0.0)}',
    ),
    "half off-centre": slopes(
        HYPER,
        site("dist.Normal(0.5, tau).expand({shape}).to_event({ndim})"),
        reparam='{"w": LocScaleReparam(0.4)}',
    ),
    "transformed": slopes(
        HYPER,
        'w = numpyro.sample("w", dist.TransformedDistribution(',
        "    dist.Normal(0.0, 1.0).expand({shape}).to_event({ndim}), dist.transforms.AffineTransform(0.5, tau)))",
        reparam='{"w": TransformReparam()}',
    ),
}

GROUPS = {
    "none": Latent((), lambda v, c: 0.0),
    "centred": Latent(
        (
            'sd_group = numpyro.sample("sd_group", dist.HalfNormal(1.0))',
            'with numpyro.plate("groups", {groups}):',
            '    effect = numpyro.sample("effect", dist.Normal(0.0, sd_group))',
            "effect = effect[group]",
        ),
        lambda v, c: v["effect"][c["group"].astype(int)],
    ),
    "not centred": Latent(
        (
            'sd_group = numpyro.sample("sd_group", dist.HalfCauchy(1.0))',
            'with numpyro.plate("groups", {groups}):',
            '    unit = numpyro.sample("unit", dist.Normal(0.0, 1.0))',
            "effect = (sd_group * unit)[group]",
        ),
        lambda v, c: (v["sd_group"] * v["unit"])[c["group"].astype(int)],
    ),
    "slopes": Latent(
        (
            'with numpyro.plate("groups", {groups}):',
            '    both = numpyro.sample("both", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))',
            "effect = both[group, 0] + both[group, 1] * z[:, 0]",
        ),
        lambda v, c: np.sum(v["both"][c["group"].astype(int)] * np.stack([np.ones(len(c["z"])), c["z"][:, 0]], 1), 1),
    ),
    "sum of zero": Latent(
        ('effect = numpyro.sample("effect", dist.ZeroSumNormal(1.0, event_shape=({groups},)))[group]',),
        lambda v, c: v["effect"][c["group"].astype(int)],
    ),
}

NOISE = {
    "fixed": Latent(("s = 0.7",), lambda v, c: 0.7),
    "half-normal": Latent(('s = numpyro.sample("s", dist.HalfNormal(1.0))',), lambda v, c: v["s"]),
    "variance": Latent(
        ('s = jnp.sqrt(numpyro.sample("variance", dist.InverseGamma(3.0, 2.0)))',), lambda v, c: np.sqrt(v["variance"])
    ),
    "bounded": Latent(('s = numpyro.sample("s", dist.Uniform(0.1, jnp.sqrt(4.0)))',), lambda v, c: v["s"]),
    "of the inputs": Latent(
        ('c = numpyro.sample("c", dist.Normal(0.0, 0.3))', "s = jnp.exp(c + 0.3 * z[:, 1])"),
        lambda v, c: np.exp(v["c"] + 0.3 * c["z"][:, 1]),
    ),
}
