"""Random NumPyro programs with data, and beside each the log-likelihood of its rows in NumPy and SciPy.

``random_case(seed)`` makes the same program from the same seed. A program is a ``Recipe``, a choice of one word for
each of a few questions; the first word of each is the plainest, and ``plainest`` takes a recipe that fails back to
plain words as long as it fails, so that what is printed in the end is short.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.reparam import LocScaleReparam, TransformReparam
from scipy import stats

from tests.models.grammar import FAMILIES, GROUPS, NOISE, SLOPES, Family

__all__ = ["OPTIONS", "Case", "Recipe", "build", "plainest", "random_case", "random_recipe"]

ROWS = 6

OPTIONS: dict[str, tuple[Any, ...]] = {
    "family": tuple(FAMILIES),
    "slopes": tuple(SLOPES),
    "groups": tuple(GROUPS),
    "noise": tuple(NOISE),
    "extra": ("none", "offset", "exposure", "error"),
    "mask": ("none", "column", "distribution", "missing targets"),
    "second": ("none", "inputs", "targets", "factor", "factor outside", "factor of f"),
    "penalty": ("none", "scalar", "vector", "as long as the data", "each group"),
    "handler": ("none", "scale likelihood", "scale prior", "scope", "condition", "seed"),
    "inputs": ("array", "dict", "tuple"),
    "plate": ("shape", "len", "targets", "dim", "none"),
    "function": ("none", "vector", "column"),
    "num_groups": (3, ROWS),
    "target_type": ("as drawn", "float", "small", "float32", "bool"),
    "integer_type": ("int64", "uint8", "int8"),
}


@dataclass(frozen=True)
class Recipe:
    """One word for each question; ``OPTIONS`` has the words."""

    family: str = "normal"
    slopes: str = "normal"
    groups: str = "none"
    noise: str = "fixed"
    extra: str = "none"
    mask: str = "none"
    second: str = "none"
    penalty: str = "none"
    handler: str = "none"
    inputs: str = "array"
    plate: str = "shape"
    function: str = "none"
    num_groups: int = 3
    target_type: str = "as drawn"
    integer_type: str = "int64"

    def __str__(self) -> str:
        words = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return f"Recipe({', '.join(f'{name}={word!r}' for name, word in words.items())})"


@dataclass(frozen=True)
class Case:
    """A program with data.

    Attributes:
        recipe: what it was built from.
        source: the program as source, for whoever reads that it failed.
        program: the program.
        x: inputs, an array, a dictionary or a tuple.
        y: targets.
        rows: ``values -> (n,)``, log-likelihoods at constrained values of the sites, in NumPy and SciPy.
        probabilities: ``values -> (n, classes)``, or None.
    """

    recipe: Recipe
    source: str
    program: Callable[..., Any]
    x: Any
    y: np.ndarray
    rows: Callable[[dict[str, np.ndarray]], np.ndarray]
    probabilities: Callable[[dict[str, np.ndarray]], np.ndarray] | None


def random_recipe(seed: int) -> Recipe:
    """The recipe of a seed; half of the words beside those of the distributions are the plainest."""
    rng = random.Random(seed)
    words = {}
    for name, options in OPTIONS.items():
        plain = name not in ("family", "slopes") and rng.random() < 0.5
        words[name] = options[0] if plain else rng.choice(options)
    return consistent(Recipe(**words))


def consistent(recipe: Recipe) -> Recipe:
    """The recipe with plain words where two do not go together."""
    family = FAMILIES[recipe.family]
    several, whole_lines = family.outputs > 1, "obs=y" in family.source
    plain = {f.name: f.default for f in fields(Recipe)}
    clashes = {
        "slopes": several and not SLOPES[recipe.slopes].any_shape,
        "noise": not family.has_noise,
        "extra": recipe.extra == "error" and not family.has_noise,
        "mask": (recipe.mask != "none" and whole_lines)
        or (recipe.mask == "missing targets" and recipe.family not in ("normal", "student", "laplace"))
        or (recipe.mask == "distribution" and recipe.family in ("ordered", "censored")),
        "second": several and recipe.second in ("targets", "factor of f"),
        "penalty": recipe.penalty == "each group" and recipe.groups not in ("centred", "not centred"),
        "plate": recipe.plate == "none" and whole_lines,
        "function": recipe.function == "column" and several,
        "num_groups": recipe.groups == "none",
        "integer_type": recipe.inputs == "array",
        "target_type": (recipe.target_type == "bool" and recipe.family not in ("bernoulli", "probit"))
        or (recipe.target_type == "small" and family.kind == "real")
        # NumPyro takes no numbers with a decimal point for categories.
        or (recipe.target_type in ("float", "float32") and family.classes == 3)
        or (recipe.target_type == "float32" and recipe.family == "shares"),
    }
    recipe = replace(recipe, **{name: plain[name] for name, clash in clashes.items() if clash})
    if recipe.mask == "missing targets":
        recipe = replace(recipe, second="none" if recipe.second == "targets" else recipe.second)
    return recipe


def random_case(seed: int) -> Case:
    """Program and data of a seed."""
    return build(random_recipe(seed))


def plainest(recipe: Recipe, fails: Callable[[Recipe], bool]) -> Recipe:
    """The recipe with as many plain words as it can have and still fail."""
    smaller = True
    while smaller:
        smaller = False
        for field in fields(Recipe):
            candidate = consistent(replace(recipe, **{field.name: field.default}))
            if candidate != recipe and fails(candidate):
                recipe, smaller = candidate, True
    return recipe


def build(recipe: Recipe) -> Case:
    """The program of a recipe, with data."""
    family = FAMILIES[recipe.family]
    rng = np.random.default_rng(sum(map(ord, str(recipe))))
    columns = draw_columns(recipe, family, rng)
    y = draw_targets(recipe, family, columns, rng)
    source = "\n".join(program_lines(recipe, family, columns))
    names = {"jax": jax, "jnp": jnp, "np": np, "numpyro": numpyro, "dist": dist, "handlers": handlers}
    names |= {"LocScaleReparam": LocScaleReparam, "TransformReparam": TransformReparam}
    exec(source, names)

    def rows(values: dict[str, np.ndarray]) -> np.ndarray:
        return log_likelihood(recipe, family, columns, y, values)

    def probabilities(values: dict[str, np.ndarray]) -> np.ndarray:
        values = constrained(values)
        f = predictor(recipe, family, columns, values)
        each = [family.log_prob(np.full(ROWS, k), f, 1.0, columns, values) for k in range(family.classes)]
        return np.exp(np.stack(each, axis=1))

    # Classes are those of the one observed site.
    has_classes = family.classes > 0 and recipe.second == "none"
    x = pack(recipe, columns)
    return Case(recipe, source, names["program"], x, y, rows, probabilities if has_classes else None)


def draw_columns(recipe: Recipe, family: Family, rng: np.random.Generator) -> dict[str, np.ndarray]:
    made = {
        "z": rng.normal(size=(ROWS, 2)),
        "group": rng.permutation(np.arange(ROWS) % recipe.num_groups),
        "offset": rng.normal(size=ROWS),
        "exposure": rng.uniform(0.5, 2.0, ROWS),
        "error": rng.uniform(0.2, 1.0, ROWS),
        "trials": rng.integers(1, 9, ROWS),
        "event": rng.permutation(np.arange(ROWS) % 2),
        "keep": rng.permutation(np.arange(ROWS) % 3) > 0,
    }
    needed = {"z", *family.columns}
    needed |= set() if recipe.groups == "none" else {"group"}
    needed |= set() if recipe.extra == "none" else {recipe.extra}
    needed |= {"keep"} if recipe.mask in ("column", "distribution") else set()
    return {name: column for name, column in made.items() if name in needed}


def draw_targets(
    recipe: Recipe, family: Family, columns: dict[str, np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    f = 0.5 * rng.normal(size=(ROWS,) if family.outputs == 1 else (ROWS, family.outputs))
    y = np.asarray(family.draw(rng, f, 0.7, columns))
    if recipe.mask == "missing targets":
        y[:: ROWS // 2] = np.nan
    kinds = {"as drawn": y.dtype, "float": np.float64, "small": np.uint8, "float32": np.float32, "bool": np.bool_}
    return y.astype(kinds[recipe.target_type])


def pack(recipe: Recipe, columns: dict[str, np.ndarray]) -> Any:
    typed = {
        name: column.astype(recipe.integer_type) if column.dtype.kind == "i" else column
        for name, column in columns.items()
    }
    if recipe.inputs == "dict":
        return typed
    if recipe.inputs == "tuple":
        return tuple(typed.values())
    return np.column_stack(list(columns.values())).astype(float)


def unpack_lines(recipe: Recipe, columns: dict[str, np.ndarray]) -> Iterator[str]:
    if recipe.inputs == "dict":
        yield from (f'{name} = x["{name}"]' for name in columns)
    elif recipe.inputs == "tuple":
        yield f"{', '.join(columns)}, = x"
    elif len(columns) == 1:
        yield "z = x"
    else:
        yield "z = x[:, :2]"
        for i, (name, column) in enumerate(list(columns.items())[1:], start=2):
            yield f"{name} = x[:, {i}]" + (".astype(int)" if column.dtype.kind == "i" else "")


def program_lines(recipe: Recipe, family: Family, columns: dict[str, np.ndarray]) -> Iterator[str]:
    shape = [2] if family.outputs == 1 else [2, family.outputs]

    def piece(line: str) -> str:
        for name, word in (("{shape}", shape), ("{ndim}", len(shape)), ("{groups}", recipe.num_groups)):
            line = line.replace(name, str(word))
        return textwrap.indent(line, "    ")

    yield "def program(x, y=None):"
    yield from map(piece, unpack_lines(recipe, columns))
    yield piece('b0 = numpyro.sample("b0", dist.Normal(0.0, 1.0))')
    under = {"scope": 'with handlers.scope(prefix="part"):', "scale prior": "with handlers.scale(scale=0.5):"}
    inner = list(SLOPES[recipe.slopes].lines)
    if recipe.handler in under:
        inner = [under[recipe.handler], *(textwrap.indent(line, "    ") for line in inner)]
    yield from map(piece, inner)
    yield from map(piece, GROUPS[recipe.groups].lines)
    yield from map(piece, NOISE[recipe.noise].lines if family.has_noise else ())
    yield from map(piece, family.latents)
    yield from map(piece, penalty_lines(recipe))
    effect = "" if recipe.groups == "none" else (" + effect" if family.outputs == 1 else " + effect[:, None]")
    yield piece(f"f = b0 + z @ w{effect}")
    if recipe.function == "vector":
        yield piece('f = numpyro.deterministic("f", f)')
    elif recipe.function == "column":
        yield piece('f = numpyro.deterministic("f", f[:, None])[:, 0]')
    yield from map(piece, likelihood_lines(recipe, family))
    reparam = SLOPES[recipe.slopes].reparam
    if reparam:
        yield f"program = handlers.reparam(program, config={reparam})"
    if recipe.handler == "condition":
        yield 'program = handlers.condition(program, data={"b0": 0.3})'
    if recipe.handler == "seed":
        yield "program = handlers.seed(program, rng_seed=0)"


def penalty_lines(recipe: Recipe) -> Iterator[str]:
    if recipe.penalty == "scalar":
        yield 'numpyro.factor("penalty", -0.1 * b0**2)'
    elif recipe.penalty == "vector":
        yield 'numpyro.factor("penalty", -0.1 * jnp.stack([b0, b0 - 1.0]) ** 2)'
    elif recipe.penalty == "as long as the data":
        yield f'numpyro.factor("penalty", -0.01 * (b0 - jnp.arange({ROWS}.0)) ** 2)'
    elif recipe.penalty == "each group":
        value = {"centred": "sd_group", "not centred": "unit"}[recipe.groups]
        yield 'with numpyro.plate("groups again", {groups}):'
        yield f'    numpyro.factor("penalty", -0.1 * (jnp.arange(float({{groups}})) + {value}) ** 2)'


def likelihood_lines(recipe: Recipe, family: Family) -> Iterator[str]:
    along = "" if family.outputs == 1 else "[:, None]"
    added = {"offset": f"offset{along}", "exposure": f"jnp.log(exposure){along}"}
    f = f"(f + {added[recipe.extra]})" if recipe.extra in added else "f"
    s = "jnp.sqrt(s**2 + error**2)" if recipe.extra == "error" else "s"
    if family.outputs > 1 and (recipe.extra == "error" or recipe.noise == "of the inputs"):
        s = f"({s})[:, None]"
    source = family.source.replace("{f}", f).replace("{s}", s)
    if recipe.mask == "missing targets":
        yield "seen = True if y is None else ~jnp.isnan(y)"
        yield "filled = None if y is None else jnp.where(seen, y, 0.0)"
        source = f'with handlers.mask(mask=seen):\n    numpyro.sample("y", {source}, obs=filled)'
    elif recipe.mask == "distribution":
        source = f'numpyro.sample("y", {source}.mask(keep > 0), obs=y)'
    elif "obs=y" not in source:
        source = f'numpyro.sample("y", {source}, obs=y)'
    if recipe.mask == "column":
        source = "with handlers.mask(mask=keep > 0):\n" + textwrap.indent(source, "    ")
    if recipe.handler == "scale likelihood":
        source = "with handlers.scale(scale=0.5):\n" + textwrap.indent(source, "    ")
    second = {
        "inputs": 'numpyro.sample("seen", dist.Normal(b0, 1.0), obs=z[:, 0])',
        "targets": 'numpyro.sample("again", dist.Normal(b0, 5.0), obs=None if y is None else 1.0 * y)',
        "factor": 'numpyro.factor("rows", -0.1 * (z[:, 0] - b0) ** 2)',
        "factor outside": 'numpyro.factor("rows", -0.1 * (z[:, 0] - b0) ** 2)',
        "factor of f": 'numpyro.factor("rows", -0.05 * f**2)',
    }
    plates = {
        "shape": 'with numpyro.plate("data", z.shape[0]):',
        "len": 'with numpyro.plate("N", len(z)):',
        "targets": 'with numpyro.plate("data", len(z) if y is None else y.shape[0]):',
        "dim": 'with numpyro.plate("data", len(z), dim=-1):',
        "none": "",
    }
    inside = [source] + ([second[recipe.second]] if recipe.second not in ("none", "factor outside") else [])
    if recipe.plate == "none":
        yield from inside
    else:
        yield plates[recipe.plate]
        yield from (textwrap.indent(line, "    ") for line in inside)
    if recipe.second == "factor outside":
        yield second[recipe.second]


def predictor(recipe: Recipe, family: Family, columns: Any, values: Any) -> np.ndarray:
    effect = np.asarray(GROUPS[recipe.groups].value(values, columns))
    offset = columns["offset"] if recipe.extra == "offset" else 0.0
    offset = np.asarray(np.log(columns["exposure"]) if recipe.extra == "exposure" else offset)
    f = values["b0"] + columns["z"] @ SLOPES[recipe.slopes].value(values, columns)
    if family.outputs > 1:
        effect, offset = (a[:, None] if a.ndim else a for a in (effect, offset))
    return f + effect + offset


def constrained(values: Any) -> dict[str, np.ndarray]:
    """Values by name without the scope, with that of the site that may have been conditioned on."""
    return {"b0": np.asarray(0.3)} | {n.removeprefix("part/"): np.asarray(v, float) for n, v in values.items()}


def log_likelihood(recipe: Recipe, family: Family, columns: Any, y: np.ndarray, values: Any) -> np.ndarray:
    values = constrained(values)
    f = predictor(recipe, family, columns, values)
    s: Any = 1.0
    if family.has_noise:
        s = np.broadcast_to(NOISE[recipe.noise].value(values, columns), (ROWS,))
        s = np.sqrt(s**2 + columns["error"] ** 2) if recipe.extra == "error" else s
        s = s[:, None] if family.outputs > 1 else s
    targets = y.astype(float)
    kept = np.ones(ROWS, bool)
    if recipe.mask == "missing targets":
        kept = ~np.isnan(targets)
    elif recipe.mask != "none":
        kept = columns["keep"] > 0
    total = np.where(kept, family.log_prob(np.where(np.isnan(targets), 0.0, targets), f, s, columns, values), 0.0)
    total = total * (0.5 if recipe.handler == "scale likelihood" else 1.0)
    z, b0 = columns["z"][:, 0], values["b0"]
    if recipe.second == "inputs":
        total = total + stats.norm.logpdf(z, b0, 1.0)
    elif recipe.second == "targets":
        total = total + stats.norm.logpdf(targets, b0, 5.0)
    elif recipe.second in ("factor", "factor outside"):
        total = total - 0.1 * (z - b0) ** 2
    elif recipe.second == "factor of f":
        added = columns["offset"] if recipe.extra == "offset" else 0.0
        added = np.log(columns["exposure"]) if recipe.extra == "exposure" else added
        total = total - 0.05 * (f - added) ** 2
    return total
