"""``fit`` and what is derived from it: names, signatures, documentation, ``"auto"``."""

import dataclasses
import inspect
import pydoc

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

import pseudocoreset as pc
from pseudocoreset import Dataset, fit
from pseudocoreset.cli import app
from pseudocoreset.fitting import METHODS
from pseudocoreset.methods import FBPC, BPCReverseKL
from pseudocoreset.models import MLP, bnn, logistic_regression
from pseudocoreset.subsets import Herding, Random

RNG = np.random.default_rng(0)
DATA = Dataset.from_arrays(RNG.normal(size=(60, 3)).astype(np.float32), (np.arange(60) % 2).astype(np.int32))
MODEL = logistic_regression(DATA)
QUIET = dict(key=jax.random.key(0), progress=False)


@pytest.mark.parametrize("name", METHODS)
def test_an_alias_has_the_signature_and_the_words_of_its_method(name):
    alias, cls = getattr(pc, f"fit_{name}"), METHODS[name]
    parameters = inspect.signature(alias).parameters
    assert list(parameters)[:5] == ["model", "data", "images_per_class", "size", "key"]
    kinds = {parameter.kind for parameter in list(parameters.values())[2:]}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}
    for field in dataclasses.fields(cls):
        assert parameters[field.name].default == field.default
    assert set(parameters) - {field.name for field in dataclasses.fields(cls)} == {
        "model", "data", "images_per_class", "size", "key", "progress", "verdict", *cls.takes
    }  # fmt: skip
    words = pydoc.render_doc(alias, renderer=pydoc.plaintext)
    assert words.splitlines()[2].startswith(f"fit_{name}(model: ")
    for parameter in parameters:
        assert f"\n        {parameter}: " in words, f"{parameter} is not documented"


def test_an_alias_and_its_method_are_the_same_fit():
    arguments = dict(size=4, **QUIET)
    one = pc.fit_bpc_rkl(MODEL, DATA, num_draws=8, steps=3, **arguments)
    for other in (
        fit(MODEL, DATA, BPCReverseKL(num_draws=8, steps=3), **arguments),
        fit(MODEL, DATA, BPCReverseKL(num_draws=8), steps=3, **arguments),
        fit(MODEL, DATA, "bpc_rkl", num_draws=8, steps=3, **arguments),
    ):
        np.testing.assert_array_equal(one.coreset.inputs, other.coreset.inputs)
        np.testing.assert_array_equal(one.coreset.weights, other.coreset.weights)


def test_auto_takes_fbpc_for_networks_and_the_reverse_kl_for_other_models():
    network = bnn(MLP((4,)), DATA)
    fast = dict(size=4, steps=1, num_experts=1, num_expert_epochs=2, **QUIET)
    assert fit(network, DATA, num_draws=2, **fast).coreset.metadata["objective"] == "fbpc"
    assert fit(MODEL, DATA, size=4, steps=1, **QUIET).coreset.metadata["objective"] == "bpc_rkl"


def test_auto_takes_curvature_where_there_is_a_mode_and_says_so():
    for arguments in ({}, {"size": 4}):
        result = fit(MODEL, DATA, **arguments, **QUIET)
        assert result.coreset.metadata["objective"] == "curvature"
        assert result.coreset.size == 4
        assert "method='auto' took 'curvature': the posterior has a mode" in repr(result)


def _nats(result):
    found = result.coreset.metadata["at_mode"]["nats"]
    return np.inf if found is None else found


def test_auto_takes_another_method_where_the_curvature_is_not_matched_and_says_why():
    few = fit(MODEL, DATA, size=2, **QUIET)
    chosen = few.coreset.metadata["objective"]
    assert f"took {chosen!r}: 2 points by curvature are" in repr(few)
    nats = {name: _nats(fit(MODEL, DATA, name, size=2, **QUIET)) for name in ("curvature", "bpc_fkl")}
    assert chosen == min(nats, key=nats.get)
    assert _nats(few) == pytest.approx(nats[chosen], rel=0.1)
    with pytest.raises(ValueError, match=r"give one of images_per_class and size.*'fbpc' needs it.*networks have many"):
        fit(bnn(MLP((4,)), DATA), DATA, **QUIET)


def test_the_command_takes_auto(tmp_path):
    arguments = ["fit", "--method", "auto", "--set", "typo=1", "--data", "digits", "--out", str(tmp_path / "out")]
    failed = CliRunner().invoke(app, arguments)
    assert "the method 'fbpc' has no setting 'typo'" in str(failed.exception)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fit(MODEL, DATA, "fbcp", size=2, **QUIET), ValueError, "method='fbcp' is unknown; use one of 'fbpc'"),
        (lambda: fit(MODEL, DATA, "json:loads", size=2, **QUIET), ValueError, "must name a class of Method"),
        (lambda: fit(MODEL, DATA, "nowhere:X", size=2, **QUIET), ValueError, "No module named 'nowhere'"),
        (lambda: fit(MODEL, DATA, "random", size=2, steps=3, **QUIET), TypeError, "'random' has no setting 'steps'"),
        (
            lambda: fit(MODEL, DATA, Random(), size=2, checkpoint_dir="there", **QUIET),
            TypeError,
            "checkpoint_dir: the method 'random' has no use for it",
        ),
        (lambda: pc.fit_herding(MODEL, DATA, size=2, experts=1, **QUIET), TypeError, r"fit_herding\(\) .*'experts'"),
        (lambda: pc.fit_fbpc(MODEL, size=2, **QUIET), TypeError, r"fit_fbpc\(\) missing .*'data'"),
        (lambda: fit(MODEL, DATA, "bpc_w", **QUIET), ValueError, "give one of images_per_class and size"),
        (
            lambda: fit(bnn(MLP((4,)), DATA), DATA, size=2, num_expert_epochs=0, **QUIET),
            ValueError,
            "num_expert_epochs must be at least 1; got 0",
        ),
        (lambda: FBPC(num_draws="many"), TypeError, "num_draws must be an integer; got str 'many'"),
        (lambda: FBPC(step_size=0.0), ValueError, "step_size must be a positive number"),
        (lambda: Herding(weights="learned"), ValueError, "weights='learned' is unknown"),
        (lambda: fit(DATA, MODEL, size=2, **QUIET), TypeError, "model must be a Model"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
