"""A kernel by its name with options, or by its class that holds them: the same draws, and the same errors."""

from __future__ import annotations

import dataclasses
import re

import jax
import numpy as np
import pytest

from pseudocoreset import inference
from pseudocoreset.inference import HMC, MCLMC, NUTS, SGHMC, SGLD, NetworkHMC, sample
from pseudocoreset.inference.kernels import KERNELS
from pseudocoreset.inference.schedules import Polynomial


def run(regression, kernel, **settings):
    settings = {"num_chains": 2, "num_warmup": 10, "num_samples": 6, **settings}
    return sample(
        regression.model, (regression.x, regression.y), kernel=kernel, key=jax.random.key(2), progress=False, **settings
    )


@pytest.mark.parametrize(
    ("kernel", "settings"),
    [
        (SGHMC(friction=2.0, schedule="polynomial"), {"step_size": 0.05, "batch_size": 8}),
        (HMC(num_integration_steps=3, inverse_mass_matrix=[1.0, 2.0, 1.0]), {"step_size": 0.05}),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else "",
)
def test_both_ways_have_the_same_draws(regression, kernel, settings) -> None:
    by_name, by_class = (
        run(regression, kernel.name, **settings, **kernel.options()),
        run(regression, kernel, **settings),
    )
    np.testing.assert_array_equal(by_name.draws["b"], by_class.draws["b"])
    assert by_name.metadata["options"] == by_class.metadata["options"]


@pytest.mark.parametrize("name", list(KERNELS))
def test_each_option_is_documented_and_has_its_published_default(name: str) -> None:
    kind = KERNELS[name]
    for field in dataclasses.fields(kind):
        assert re.search(rf"^        {field.name}: ", kind.__doc__, re.MULTILINE), field.name
        assert field.default is not dataclasses.MISSING
    assert getattr(inference, kind.__name__) is kind
    assert f'``"{name}"`` (``{kind.__name__}``)' in re.sub(r"\s+", " ", sample.__doc__)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SGHMC(friction="much"), TypeError, "friction must be a number or None; got str 'much'"),
        (lambda: SGHMC(friction=0.0), ValueError, "friction must be a positive number"),
        (lambda: NUTS(target_acceptance_rate=1.5), ValueError, "target_acceptance_rate must lie between 0 and 1"),
        (lambda: NUTS(max_num_doublings=2.5), TypeError, "max_num_doublings must be an integer"),
        (lambda: NUTS(is_mass_matrix_diagonal="yes"), TypeError, "is_mass_matrix_diagonal must be"),
        (lambda: SGLD(schedule="linear"), ValueError, "schedule='linear' is unknown"),
        (lambda: MCLMC(energy_variance=-1.0), ValueError, "energy_variance must be a positive number"),
        (lambda: NetworkHMC(trajectory_jitter=1.0), ValueError, "trajectory_jitter must be at least 0"),
        (lambda: SGLD(friction=1.0), TypeError, "unexpected keyword argument 'friction'"),
    ],
)
def test_options_are_checked_where_they_are_given(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


def test_arrays_are_checked_against_the_model(regression) -> None:
    for matrix in ("wide", {}):
        with pytest.raises(TypeError, match="inverse_mass_matrix must be an array of numbers; got"):
            run(regression, HMC(inverse_mass_matrix=matrix))
    with pytest.raises(ValueError, match=r"inverse_mass_matrix has shape \(2,\)"):
        run(regression, HMC(inverse_mass_matrix=np.ones(2)))


def test_a_class_is_no_kernel(regression) -> None:
    with pytest.raises(TypeError, match="kernel must be a string or a Kernel; got the class SGHMC"):
        run(regression, SGHMC)


def test_options_beside_a_kernel_are_refused(regression) -> None:
    with pytest.raises(ValueError, match="'friction': kernel is a SGHMC, which holds its own options; give them to it"):
        run(regression, SGHMC(), friction=1.0)


def test_options_of_one_value_compile_nothing_for_another() -> None:
    first, second = SGHMC(friction=1.0, schedule=Polynomial()), SGHMC(friction=2.0, control_variate={"b": np.ones(3)})
    assert first.compiled_form() == second.compiled_form()
    assert hash(first.compiled_form()) == hash(second.compiled_form())
    assert NUTS().compiled_form() != NUTS(max_num_doublings=3).compiled_form()
