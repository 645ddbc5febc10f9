"""Arrays mean the same at every door, or are refused with a remedy."""

from __future__ import annotations

import decimal
import fractions
import pathlib
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse

from pseudocoreset import Dataset, Pseudocoreset
from pseudocoreset.data import Preprocessing, Split
from pseudocoreset.inference import sample
from pseudocoreset.models import linear_regression

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 3)).astype(np.float32)
Y = (X @ [1.0, -2.0, 0.5] + 0.1 * RNG.normal(size=20)).astype(np.float32)
SETTINGS: dict[str, Any] = {
    "kernel": "nuts",
    "num_chains": 1,
    "num_warmup": 10,
    "num_samples": 5,
    "key": jax.random.key(0),
    "progress": False,
}
# For posteriors that nobody could sample: chains that hardly move.
STILL: dict[str, Any] = {"kernel": "hmc", "step_size": 1e-14, "num_samples": 2, "num_warmup": 0}
MODEL = linear_regression(noise_scale=0.1).bind(X, Y)
KINDS = pd.DataFrame({"a": X[:, 0], "b": ["u", "v"] * 10})
HUGE = np.where(np.arange(60).reshape(20, 3) == 10, 1e300, X.astype(float))


def through_dataset(x: Any, y: Any = Y) -> np.ndarray:
    return Dataset.from_arrays(x, y).train.x


def through_test_split(x: Any, y: Any = Y) -> np.ndarray:
    found = Dataset.from_arrays(X, Y, test=(x, y)).test
    assert found is not None
    return found.x


def through_sample(x: Any, y: Any = Y) -> np.ndarray:
    sample(MODEL, (x, y), **SETTINGS)
    return np.asarray(x, np.float32)


def through_predict_on(x: Any, y: Any = Y) -> np.ndarray:
    found = sample(MODEL, (X, Y), predict_on=(x, y), **SETTINGS).predict_on
    assert found is not None
    return found.x


def through_evaluate(x: Any, y: Any = Y) -> np.ndarray:
    found = sample(MODEL, (X, Y), keep="weights", **SETTINGS).evaluate((x, y)).predict_on
    assert found is not None
    return found.x


DOORS: dict[str, Callable[..., np.ndarray]] = {
    "Dataset": through_dataset,
    "test": through_test_split,
    "sample": through_sample,
    "predict_on": through_predict_on,
    "evaluate": through_evaluate,
}
FAST = ("Dataset", "test")

HOLE = np.zeros(X.shape, bool)
HOLE[[3, 7], [1, 2]] = True
MASKED = np.ma.masked_array(np.where(HOLE, np.float32(-9999), X), HOLE)
MISSING = pd.DataFrame({"a": X[:, 0], "b": pd.array([1] * 4 + [pd.NA] + [2] * 15, dtype="Int64"), "c": X[:, 2]})
OBJECTS = X.astype(object)
OBJECTS[5, 1] = "many"

REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "masked": (MASKED, ValueError, r"x has masked entries in 2 rows, the first of them row 3.*getmaskarray\(x\).any"),
    "list of masked rows": (list(MASKED), ValueError, "masked entries in 2 rows, the first of them row 3"),
    "nullable integers": (MISSING, ValueError, "x column 'b' has a missing value in row 4"),
    "None": (np.where(HOLE, None, X.astype(object)), ValueError, "x has a missing value in row 3"),
    "polars null": (pl.DataFrame({"a": [1.0, None] * 10}), ValueError, "x column 'a' has a missing value in row 1"),
    "objects": (OBJECTS, TypeError, "got 'many' in row 5, column 1"),
    "categories": (
        pd.DataFrame({"a": pd.Categorical(["u", "v"] * 10)}),
        TypeError,
        "x column 'a' holds categories.*codes",
    ),
    "number categories": (pd.DataFrame({"a": pd.Categorical([3, 4] * 10)}), TypeError, "x column 'a' holds categories"),
    "text column": (
        pd.DataFrame({"a": X[:, 0], "b": ["u", "v"] * 10}),
        TypeError,
        "x column 'b' must hold real numbers, got",
    ),
    "polars text": (
        pl.DataFrame({"a": X[:, 0], "b": ["u", "v"] * 10}),
        TypeError,
        "x column 'b' must hold .* got text",
    ),
    "numbers as text": (X.astype(str), TypeError, r"got text.*x\.astype\(float\)"),
    "bytes": (X.astype("S9"), TypeError, "got text"),
    "complex": (X + 0j, TypeError, r"complex.*\.real and \.imag"),
    "dates": (np.full((20, 1), "2020-01-01", "M8[s]"), TypeError, r"dates or times.*np\.timedelta64"),
    "durations": (np.zeros((20, 1), "m8[s]"), TypeError, "dates or times"),
    "records": (np.zeros((20, 1), [("a", "f4")]), TypeError, "records.*structured_to_unstructured"),
    "sparse": (scipy.sparse.csr_matrix(X), TypeError, r"sparse matrix; give .*toarray\(\)"),
    "ragged": ([[1.0, 2.0], [1.0]] * 10, TypeError, "cannot be read as an array"),
    "infinite": (np.where(HOLE, np.inf, X), ValueError, r"got inf at index \(3, 1\), and 2 such values"),
    "beyond float32": (
        np.where(HOLE, 1e300, X.astype(float)),
        ValueError,
        r"finite in float32, got 1e\+300 at index \(3, 1\)",
    ),
    "scalar": (1.0, ValueError, r"\(n, \*feature_shape\)"),
    "None alone": (None, TypeError, "array of real numbers, got NoneType"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("door", DOORS)
def test_inputs_without_one_meaning_are_refused(door: str, case: str) -> None:
    x, error, message = REFUSED[case]
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        DOORS[door](x)


Z = RNG.integers(-3, 4, size=(20, 3)).astype(np.float32)
FRAME = pd.DataFrame(Z, columns=list("abc"))

SAME: dict[str, Any] = {
    "mask without entries": np.ma.masked_array(Z, np.zeros(Z.shape, bool)),
    "no mask": np.ma.masked_array(Z),
    "other byte order": Z.astype(">f8"),
    "other byte order of integers": Z.astype(">i4"),
    "float16": Z.astype(np.float16),
    "longdouble": Z.astype(np.longdouble),
    "bfloat16": jnp.asarray(Z, jnp.bfloat16),
    "jax": jnp.asarray(Z),
    "list": Z.tolist(),
    "list of arrays": list(Z),
    "columns": np.asfortranarray(Z),
    "strided": np.repeat(Z, 2, axis=0)[::2],
    "reversed": Z[::-1][::-1],
    "int8": Z.astype(np.int8),
    "objects": Z.astype(object),
    "decimals": np.array([[decimal.Decimal(int(v)) for v in row] for row in Z], object),
    "fractions": np.array([[fractions.Fraction(int(v)) for v in row] for row in Z], object),
    "pandas": FRAME,
    "pandas nullable": FRAME.convert_dtypes(),
    "pandas of kinds": FRAME.astype({"a": "Int32", "b": "int16", "c": object}),
    "polars": pl.DataFrame(Z, schema=["a", "b", "c"]),
}


@pytest.mark.parametrize("case", SAME)
@pytest.mark.parametrize("door", FAST)
def test_all_forms_of_the_same_numbers_are_the_same(door: str, case: str) -> None:
    found = DOORS[door](SAME[case])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, Z)


@pytest.mark.parametrize("door", ["predict_on", "evaluate"])
def test_all_forms_of_the_same_numbers_are_the_same_at_samplers(door: str) -> None:
    for case in ("other byte order", "pandas of kinds", "objects", "polars", "mask without entries"):
        np.testing.assert_array_equal(DOORS[door](SAME[case]), Z)


def test_forms_of_the_same_pair_give_the_same_draws() -> None:
    wanted = sample(MODEL, (Z, Y), **SETTINGS).draws["coefficients"]
    for case in ("other byte order", "pandas nullable", "polars", "list", "decimals"):
        found = sample(MODEL, (SAME[case], pd.Series(Y)), **SETTINGS).draws["coefficients"]
        np.testing.assert_array_equal(found, wanted)


def test_read_only_and_mapped_arrays_are_taken(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "x.npy", Z)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(through_dataset(mapped), Z)
    fixed = Z.copy()
    fixed.setflags(write=False)
    np.testing.assert_array_equal(through_dataset(fixed), Z)


def test_columns_of_booleans_are_zeros_and_ones() -> None:
    frame = pd.DataFrame({"a": X[:, 0] > 0, "b": X[:, 1], "c": pd.array(X[:, 2] > 0, dtype="boolean")})
    wanted = np.stack([X[:, 0] > 0, X[:, 1], X[:, 2] > 0], axis=1)
    np.testing.assert_array_equal(through_dataset(frame), wanted)
    np.testing.assert_array_equal(through_dataset(pl.DataFrame(frame.to_dict("list"))), wanted.astype(np.float32))
    np.testing.assert_array_equal(through_dataset(X > 0), X > 0)


class Tensor:
    """A tensor of another library: it has an array, unless it says that it may not be had."""

    def __init__(self, values: np.ndarray | None) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.values is None:
            raise RuntimeError("call detach() first")
        return self.values


def test_tensors_are_read_through_their_arrays() -> None:
    np.testing.assert_array_equal(through_dataset(Tensor(X), Tensor(Y)), X)
    with pytest.raises(TypeError, match=r"x cannot be read as an array: call detach\(\) first"):
        through_dataset(Tensor(None))


TARGETS: dict[str, tuple[Any, type[Exception], str]] = {
    "masked": (
        np.ma.masked_array(Y, np.arange(20) == 2),
        ValueError,
        r"masked entries in 1 rows.*row 2.*getmaskarray\(y\)\)",
    ),
    "missing": (pd.Series([1, pd.NA] * 10, dtype="Int64"), ValueError, "y has a missing value in row 1"),
    "missing words": (np.array(["a", None] * 10, object), ValueError, "y has a missing value in row 1"),
    "infinite": (
        np.where(np.arange(20) == 2, np.inf, Y),
        ValueError,
        "y must be finite in float32, got inf at index 2",
    ),
    "complex": (Y + 0j, TypeError, "y must be an array of numbers, got complex"),
    "dates": (np.full(20, "2020-01-01", "M8[s]"), TypeError, "y must .* dates"),
    "numbers as text": (Y.astype(str), TypeError, r"got text.*y\.astype\(float\)"),
    "length": (Y[:5], ValueError, "y has 5 entries for 20 inputs"),
    "scalar": (1.0, ValueError, "one entry a datum"),
}


@pytest.mark.parametrize("case", TARGETS)
@pytest.mark.parametrize("door", DOORS)
def test_targets_without_one_meaning_are_refused(door: str, case: str) -> None:
    y, error, message = TARGETS[case]
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        DOORS[door](X, y)


def test_masked_weights_are_refused() -> None:
    weights = np.ma.masked_array(np.ones(20), np.arange(20) == 4)
    with pytest.raises(ValueError, match="weights has masked entries in 1 rows, the first of them row 4"):
        sample(MODEL, (X, Y, weights), **SETTINGS)
    with pytest.raises(ValueError, match="data: weights must be finite and not negative; row 4 has nan"):
        sample(MODEL, (X, Y, weights.filled(np.nan)), **SETTINGS)


def test_masked_entries_are_refused_in_splits_and_coresets() -> None:
    with pytest.raises(ValueError, match="raw has masked entries in 2 rows, the first of them row 3"):
        Split(MASKED, Y, Preprocessing())
    with pytest.raises(ValueError, match="y must be finite, but is not in row 2"):
        Split(X, np.where(np.arange(20) == 2, np.float32(np.nan), Y), Preprocessing())
    with pytest.raises(ValueError, match="inputs has masked entries in 2 rows"):
        Pseudocoreset(MASKED, Y, np.ones(20, np.float32))
    with pytest.raises(TypeError, match="inputs must be floating point, as the model sees them; got uint8"):
        Pseudocoreset(Z.astype(np.uint8), Y, np.ones(20, np.float32))


# Far from zero.

SECONDS = 1.7e9 + RNG.uniform(0, 60, size=400)
STANDARD = (SECONDS - SECONDS.mean()) / SECONDS.std()
TABLE = np.stack([STANDARD, SECONDS], axis=1)


@pytest.mark.parametrize("far", [SECONDS, np.round(SECONDS * 1000).astype(np.int64)], ids=["float64", "int64"])
def test_values_far_from_zero_are_centred_before_they_are_rounded(far: np.ndarray) -> None:
    wanted = (far - far.mean(dtype=np.float64)) / far.std(dtype=np.float64)
    table = np.stack([far, far - far.min()], axis=1)
    data = Dataset.from_arrays(table, STANDARD, test=(table[:50] + 1, STANDARD[:50]), normalize=True)
    np.testing.assert_allclose(data.train.x[:, 0], wanted, atol=1e-5)
    np.testing.assert_allclose(data.train.x[:, 1], wanted, atol=1e-5)
    np.testing.assert_allclose(data.test.x[:, 0], wanted[:50] + 1 / far.std(), atol=1e-5)
    np.testing.assert_allclose(data.preprocessing.apply(table)[:, 0], wanted, atol=1e-5)
    np.testing.assert_allclose(data.train.subset([5, 3]).x, data.train.x[[5, 3]])
    coreset = Pseudocoreset.from_data(data, size=5, key=jax.random.key(0))
    assert all(np.any(np.all(point == data.train.x, axis=1)) for point in coreset.inputs)


def test_a_preprocessing_in_double_survives_its_file(tmp_path: pathlib.Path) -> None:
    data = Dataset.from_arrays(TABLE, STANDARD, normalize=True)
    Pseudocoreset.from_data(data, size=5, key=jax.random.key(0)).save(tmp_path / "coreset")
    again = Pseudocoreset.load(tmp_path / "coreset").preprocessing
    np.testing.assert_array_equal(again.apply(TABLE), data.train.x)
    assert again.summary == data.preprocessing.summary


@pytest.mark.filterwarnings("ignore:.*divergent transitions")
def test_columns_that_rounding_loses_are_named() -> None:
    frame = pd.DataFrame(TABLE, columns=["z", "time"])
    with pytest.warns(UserWarning, match=r"x: rounding .*\(column 'time', which it moves by up to .*normalize=True"):
        Dataset.from_arrays(frame, STANDARD)
    with pytest.warns(UserWarning, match=r"data: x: rounding .*\(column 1,.*Subtract an offset.*jax_enable_x64"):
        sample(linear_regression(), (TABLE, STANDARD), **(SETTINGS | STILL))
    with pytest.warns(UserWarning, match=r"y: rounding .*\(column 0,"):
        Dataset.from_arrays(STANDARD[:, None], 1e9 + STANDARD)
    whole = 2**24 + 1 + np.arange(100)
    with pytest.warns(UserWarning, match=r"x: rounding .*\(column 0,"):
        Dataset.from_arrays(whole[:, None], np.arange(100.0))
    outlier = np.where(np.arange(400) == 7, 0.0, SECONDS)
    with pytest.warns(UserWarning, match=r"x: rounding .*\(column 0,"):
        Dataset.from_arrays(outlier[:, None], STANDARD)
    tiny = STANDARD * 1e-50
    with pytest.warns(UserWarning, match=r"x: rounding .*\(column 0,"):
        Dataset.from_arrays(tiny[:, None], STANDARD)


@pytest.mark.parametrize("door", ["Dataset", "sample", "predict_on", "evaluate"])
def test_arrays_of_a_dictionary_are_read_alike(door: str) -> None:
    series = pd.Series([1, pd.NA] * 10, dtype="Int64")
    for leaf, message in (
        (MASKED, r"x\['b'\] has masked entries in 2 rows, the first of them row 3"),
        (series, r"x\['b'\] has a missing value in row 1"),
        (np.where(HOLE, np.nan, X), r"x\['b'\] must be finite, but is not in row 3"),
    ):
        with pytest.raises(ValueError, match=message):
            DOORS[door]({"a": X, "b": leaf})


def test_rounding_of_arrays_of_a_dictionary_is_said() -> None:
    with pytest.warns(UserWarning, match=r"x\['time'\]: rounding"):
        Dataset.from_arrays({"time": SECONDS, "z": STANDARD}, STANDARD)


def test_what_rounding_leaves_alone_raises_no_warning() -> None:
    n = 5000
    rows = np.random.default_rng(1)
    columns = {
        "uniform": rows.uniform(size=n),
        "longitude": rows.normal(128, 10, n),
        "year": rows.integers(1900, 2025, n).astype(float),
        "income": rows.lognormal(10, 1, n),
        "population": rows.integers(1, 10**9, n),
        "constant": np.full(n, 0.1 + 0.2),
        "rounding noise": np.where(rows.uniform(size=n) < 0.5, 0.1 + 0.2, 0.3),
        "counts": rows.poisson(3, n),
        "zero-inflated": np.where(rows.uniform(size=n) < 0.9, 0, rows.normal(size=n)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Dataset.from_arrays(np.stack(list(columns.values()), axis=1), columns["uniform"])


def test_doubles_stay_doubles_where_x64_is_enabled() -> None:
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("error")
        model = linear_regression(noise_scale=0.1, intercept=False)
        found = sample(model, (TABLE, STANDARD), **(SETTINGS | STILL))
    theta = found.draws["coefficients"][0]
    residual = (STANDARD - theta @ TABLE.T) / 0.1
    wanted = (
        -0.5 * (theta**2).sum(1)
        - 0.5 * (residual**2).sum(1)
        - np.log(2 * np.pi)
        - 400 * np.log(0.1 * np.sqrt(2 * np.pi))
    )
    # Rounding to float32 moves the second column by 4e-8 of its size, this sum by more.
    np.testing.assert_allclose(found.sample_stats["lp"][0], wanted, rtol=1e-11)
