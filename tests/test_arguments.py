"""Arguments of public functions: what is not wanted is refused by name, what is meant is taken."""

import inspect
import pathlib
import pickle
import re
import subprocess
import sys
import timeit
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pseudocoreset
from pseudocoreset import Dataset, Pseudocoreset, diagnostics, objectives, train_experts
from pseudocoreset.arguments import checked
from pseudocoreset.inference import Posterior, sample
from pseudocoreset.models import MLP, bnn, logistic_regression
from pseudocoreset.sbc import calibrate

if TYPE_CHECKING:
    import graphlib
    from mailbox import MaildirMessage


@checked
def taking(
    count: "int" = 1,
    scale: "float | None" = None,
    flag: "bool" = True,
    path: "str | pathlib.Path | None" = None,
    names: "Sequence[str]" = (),
    table: "Mapping[str, float] | None" = None,
    call: "Callable[..., Any] | None" = None,
    array: "np.ndarray | None" = None,
    part: "graphlib.TopologicalSorter | MaildirMessage | None" = None,
    sizes: "tuple[int, ...]" = (),
    **more: "int",
) -> None:
    """Takes things."""


@pytest.mark.parametrize(
    "arguments",
    [
        dict(count=np.int32(3)), dict(count=jnp.asarray(3)), dict(count=np.asarray(3)),
        dict(scale=1), dict(scale=np.float32(1)), dict(scale=jnp.asarray(1.0)), dict(scale=None),
        dict(flag=np.bool_(True)), dict(path="a"), dict(path=pathlib.Path("a")), dict(names=["a", "b"]),
        dict(names=("a",)), dict(table={"a": 1}), dict(call=len), dict(array=np.zeros(2)), dict(array=jnp.zeros(2)),
        dict(sizes=(1, 2)), dict(other=3), dict(flag=0), dict(flag=1), dict(flag=np.int64(1)),
        dict(flag=np.asarray(True)), dict(flag=jnp.asarray(False)),
    ],
)  # fmt: skip
def test_what_is_meant_is_taken(arguments):
    taking(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(count=2.5), "count must be an integer; got float 2.5"),
        (dict(count=True), "count must be an integer; got True"),
        (dict(count=np.zeros(3)), "count must be an integer; got an array of shape (3,) and dtype float64"),
        (dict(scale="a"), "scale must be a number or None; got str 'a'"),
        (dict(scale=True), "scale must be a number or None; got True"),
        (dict(flag=2), "flag must be True or False; got int 2"),
        (dict(flag="yes"), "flag must be True or False; got str 'yes'"),
        (dict(path=3.5), "path must be a path or None; got float 3.5"),
        (dict(names="abc"), "names must be a sequence of strings; got str 'abc'"),
        (dict(names=["a", 1]), "names must be a sequence of strings; got list ['a', 1]"),
        (dict(table={"a": "b"}), "table must be None, or a dictionary from a string to a number; got dict {'a': 'b'}"),
        (dict(call=3), "call must be a function or None; got int 3"),
        (dict(array=[1, 2]), "array must be an array or None; got list [1, 2]"),
        (dict(sizes=(1, "a")), "sizes must be a tuple of integers; got tuple (1, 'a')"),
        (dict(other="a"), "other must be an integer; got str 'a'"),
    ],
)
def test_what_is_not_wanted_is_refused_by_name(arguments, message):
    with pytest.raises(TypeError) as refused:
        taking(**arguments)
    assert str(refused.value) == message


def test_types_that_are_imported_later_are_known_then():
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_arguments as t\n"
        "def refused():\n"
        "    try: t.taking(part=0.5)\n"
        "    except TypeError as error: return str(error)\n"
        "assert refused() == 'part must be None; got float 0.5', refused()\n"
        "assert 'graphlib' not in sys.modules\n"
        "from graphlib import TopologicalSorter\n"
        "t.taking(part=TopologicalSorter())\n"
        "assert refused() == 'part must be a TopologicalSorter or None; got float 0.5', refused()\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(pathlib.Path(__file__).parent)], check=True)


def test_the_function_stays_what_it_was():
    assert list(inspect.signature(train_experts).parameters)[:3] == ["model", "data", "num_experts"]
    assert train_experts.__doc__.startswith("Train experts")
    assert pickle.loads(pickle.dumps(train_experts)) is train_experts
    assert pickle.loads(pickle.dumps(Pseudocoreset.from_data))


def test_it_costs_microseconds():
    def plain(count: int = 1, scale: float | None = None, flag: bool = True) -> None:
        pass

    once = checked(plain)
    arguments = dict(count=3, scale=0.5, flag=False)
    cost = min(timeit.repeat(lambda: once(**arguments), number=1000, repeat=5)) / 1000
    assert cost < 50e-6


def test_traced_values_pass():
    @jax.jit
    def double(x):
        taking(scale=x, array=x)
        return 2 * x

    assert double(1.5) == 3


KEY = jax.random.key(0)
DATA = Dataset.from_arrays(np.random.default_rng(0).normal(size=(20, 2)), np.arange(20) % 2)
MODEL = logistic_regression(DATA)
START = Pseudocoreset.from_data(DATA, size=3, key=KEY)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train_experts(3, DATA, num_experts=1, key=KEY), "model must be a Model; got int 3"),
        (lambda: train_experts(MODEL, MODEL, num_experts=1, key=KEY), "data must be a Dataset; got a Model"),
        (lambda: pseudocoreset.load_dataset("digits", zca="no"), "zca must be True or False; got str 'no'"),
        (lambda: Pseudocoreset.load(0.5), "path must be a path; got float 0.5"),
        (
            lambda: pseudocoreset.fit_random(MODEL, "cifar10", size=3, key=KEY),
            "data must be a Dataset; got str 'cifar10'",
        ),
        (lambda: sample("m", DATA, key=KEY), "model must be a Model; got str 'm'"),
        (lambda: Posterior.load(None), "path must be a path; got None"),
    ],
)
def test_public_functions_name_what_is_wrong(call, message):
    with pytest.raises(TypeError) as refused:
        call()
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pseudocoreset.fit_bpc_fkl(MODEL, DATA, size=3, key=KEY, num_expert_epochs=0, last_epoch=0),
         "num_expert_epochs must be at least 1; got 0"),
        (lambda: pseudocoreset.fit_bpc_fkl(MODEL, DATA, size=3, key=KEY, experts=()), "experts is empty"),
        (lambda: pseudocoreset.evaluate(START, MODEL, DATA, key=KEY, validation_fraction=2),
         "validation_fraction must be between 0 and 1; got 2"),
        (lambda: diagnostics.robustness(len, DATA.train, key=KEY, severities=(0, 1)), "each of severities must be at"),
        (lambda: diagnostics.robustness(int, DATA.train, key=KEY), "posterior_or_predict must be a Posterior or"),
        (lambda: diagnostics.compare_posteriors({}, DATA.train, max_inputs=0), "max_inputs must be at least 1; got 0"),
        (lambda: diagnostics.plot_coreset(START, DATA, max_per_class=-1), "max_per_class must be at least 1; got -1"),
        (lambda: objectives.forward_kl(MODEL, proxy=np.zeros(3)), "proxy must be one of"),
        (lambda: objectives.forward_kl(MODEL, data_draws={}), "data_draws must hold a leading axis over draws"),
        (lambda: objectives.distribution_matching(MODEL), "model: distribution_matching needs features"),
    ],
)  # fmt: skip
def test_values_that_nothing_can_be_done_with_are_refused_by_name(call, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        call()


def test_a_function_of_the_user_that_fails_is_named():
    x = np.zeros((4, 2), np.float32)
    settings = dict(num_simulations=10, num_draws=5, kernel="hmc", num_warmup=5, key=KEY)
    with pytest.raises(TypeError, match=r"quantities\(values, x, y\), which .* failed with TypeError: len"):
        calibrate(MODEL, x, quantities=len, **settings)
    with pytest.raises(ValueError, match=r"quantities must give scalars; got the shapes {'a': \(4,\)}"):
        calibrate(MODEL, x, quantities=lambda values, x, y: {"a": y}, **settings)
    with pytest.raises(TypeError, match=r"coreset\(key, x, y\) failed with ZeroDivisionError"):
        calibrate(MODEL, x, coreset=lambda key, x, y: 1 // 0, **settings)
    with pytest.raises(TypeError, match=r"prior_scale\(name, shape\) failed with TypeError"):
        bnn(MLP(widths=(3,)), DATA, prior_scale=lambda name: 1.0)
    with pytest.raises(ValueError, match=r"prior_scale\(name, shape\) must be positive; got -1.0"):
        bnn(MLP(widths=(3,)), DATA, prior_scale=lambda name, shape: -1.0)
    with pytest.raises(ValueError, match="num_outputs must be at least 1; got -1"):
        bnn(MLP(widths=(3,)), input_shape=(2,), num_outputs=-1)


def test_calls_made_by_chance_end_well(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parent)
    import fuzz_arguments

    outcomes, bare = fuzz_arguments.run(100)
    assert bare == []
    assert outcomes["refused"] > 50


@pytest.mark.filterwarnings("ignore")  # of chains too short to say anything
def test_lists_arrays_and_numbers_are_taken_where_they_say_all():
    start = {name: np.zeros(site.shape).tolist() for name, site in MODEL.init(KEY).items()}
    short = dict(kernel="hmc", num_chains=1, num_warmup=2, num_samples=2, key=KEY, progress=0)
    drawn = sample(MODEL, DATA, init_params=start, **short)
    arrays = {name: np.zeros(site.shape) for name, site in MODEL.init(KEY).items()}
    for name, draws in sample(MODEL, DATA, init_params=arrays, **short).draws.items():
        np.testing.assert_array_equal(drawn.draws[name], draws)
    x, y = np.asarray(DATA.train.x), np.asarray(DATA.train.y)
    assert len(Dataset.from_arrays(x, y, test=[x, y]).test) == 20
    coreset = Pseudocoreset.from_data(DATA, images_per_class=2, key=KEY)
    chosen = pseudocoreset.choose_mass(MODEL, coreset, (x, y), masses=jnp.array([1.0, 4.0]), **short)
    assert chosen.metadata["mass_choice"]["mass"] == [1.0, 4.0]


def test_several_numbers_are_named_in_the_plural():
    coreset = Pseudocoreset.from_data(DATA, images_per_class=2, key=KEY)
    with pytest.raises(TypeError, match="masses must be None, or a sequence of numbers"):
        pseudocoreset.choose_mass(MODEL, coreset, DATA.train, masses=0.5, key=KEY)
