"""Programs made by chance: what ``Model`` derives from a program is what NumPyro says of it."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from tests.models.contract import REFUSALS, check, check_single_precision
from tests.models.programs import Case, build, plainest, random_case

FAST, MANY = range(14), range(1_000, 2_000)
BETWEEN_CLEARINGS = 25


@pytest.fixture(autouse=True, scope="module")
def clearing():
    """Count programs, each of which leaves some 15 MB of traces and machine code with JAX."""
    return itertools.count(1)


@pytest.fixture(autouse=True)
def little_memory(clearing):
    yield
    if next(clearing) % BETWEEN_CLEARINGS == 0:
        jax.clear_caches()


def problem(case: Case, proved: bool = True) -> str | None:
    """What is wrong with the model of a program, in words."""
    # A program without a plate may be refused.
    may_be_refused = case.recipe.plate == "none"
    try:
        check(case.program, case.x, case.y, rows=case.rows, probabilities=case.probabilities, proved=proved)
    except REFUSALS as error:
        if may_be_refused and "plate" in str(error):
            return None
        return f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def report(seed: int, case: Case) -> str:
    small = build(plainest(case.recipe, lambda recipe: problem(build(recipe)) is not None))
    shapes = jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", (small.x, small.y))
    return f"seed {seed}: {small.recipe}\nx, y: {shapes}\n{small.source}\n\n{problem(small)}"


def holds(seed: int, proved: bool) -> None:
    case = random_case(seed)
    if problem(case, proved) is not None:
        pytest.fail(report(seed, case), pytrace=False)


@pytest.mark.parametrize("seed", FAST)
def test_a_program_made_by_chance_is_numpyros(seed):
    holds(seed, proved=seed % 5 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", MANY)
def test_many_programs_made_by_chance_are_numpyros(seed):
    holds(seed, proved=True)


@pytest.mark.parametrize("seed", range(0, 60, 15))
def test_a_program_made_by_chance_is_numpyros_in_single_precision(seed):
    case = random_case(seed)
    x, y = jax.tree.map(lambda a: a.astype(np.float32) if a.dtype == np.float64 else a, (case.x, case.y))
    check_single_precision(case.program, x, y)
