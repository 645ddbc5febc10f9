import jax
import numpy as np
import pytest

from pseudocoreset.data import Dataset, Preprocessing, Split

X = np.arange(24, dtype=np.float64).reshape(8, 3)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 0])
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), np.uint8)


def test_uint8_images_stay_uint8_and_become_inputs_in_0_1():
    data = Dataset.from_arrays(IMAGES, LABELS)
    assert data.train.raw.dtype == np.uint8
    assert data.train.raw.shape == (8, 4, 4, 1)
    np.testing.assert_allclose(data.train.x, IMAGES / 255.0, rtol=1e-6)
    assert data.num_classes == 3
    assert data.train.y.dtype == np.int32
    np.testing.assert_array_equal(data.class_counts(), [4, 2, 2])


def test_features_become_float32_as_they_are():
    data = Dataset.from_arrays(X, LABELS)
    assert data.train.raw.dtype == np.float32
    np.testing.assert_array_equal(data.train.x, X)
    assert data.feature_shape == (3,)
    assert data.test is None


def test_two_axes_of_uint8_are_features_and_not_scaled():
    x = np.array([[0, 1], [1, 0], [200, 1]], np.uint8)
    data = Dataset.from_arrays(x, np.array([0, 1, 1]))
    np.testing.assert_array_equal(data.train.x, x)


def test_float_targets_are_regression_and_integers_are_classes():
    counts = np.array([3.0, 0.0, 7.0, 1.0, 0.0, 2.0, 2.0, 9.0])
    data = Dataset.from_arrays(X, counts)
    assert data.num_classes is None
    assert data.train.y.dtype == np.float32
    np.testing.assert_array_equal(data.train.y, counts)
    with pytest.raises(ValueError, match="real targets"):
        data.class_counts()


def test_boolean_targets_are_two_classes():
    assert Dataset.from_arrays(X, LABELS > 0).num_classes == 2


def test_whole_float_labels_with_class_names_are_labels():
    data = Dataset.from_arrays(X, LABELS.astype(float), class_names=["a", "b", "c"])
    assert data.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(data.train.y, LABELS)


def test_normalize_gives_mean_0_and_deviation_1_and_keeps_an_intercept():
    x = np.column_stack([1e4 + X[:, 0], np.ones(8), X[:, 1] ** 2])
    test = x[:2] + 1
    data = Dataset.from_arrays(x, LABELS, test=(test, LABELS[:2]), normalize=True)
    np.testing.assert_allclose(data.train.x.mean(0), [0, 1, 0], atol=1e-4)
    np.testing.assert_allclose(data.train.x.std(0), [1, 0, 1], atol=1e-4)
    # The test split is read with the moments of train.
    np.testing.assert_allclose(data.test.x[:, 2], (test[:, 2] - x[:, 2].mean()) / x[:, 2].std(), rtol=1e-5)


def test_normalize_of_images_is_per_channel():
    images = np.random.default_rng(1).integers(0, 200, (50, 3, 3, 2), np.uint8)
    images[..., 1] //= 4
    data = Dataset.from_arrays(images, np.arange(50) % 2, normalize=True)
    np.testing.assert_allclose(data.train.x.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(data.train.x.std((0, 1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:, 0], LABELS, r"x must be \(n, \*feature_shape\).*x\[:, None\]"),
        (X[:0], LABELS[:0], "x is empty"),
        (X[:, :0], LABELS, "x is empty"),
        (IMAGES[..., 0], LABELS, r"x\[..., None\]"),
        (np.where(X == 7, np.nan, X), LABELS, r"x must be finite in float32, got nan at index \(2, 1\)"),
        (np.where(X == 7, 1e39, X), LABELS, "x must be finite in float32"),
        (X, LABELS[:7], "y has 7 entries for 8 inputs"),
        (X, LABELS[:, None], "y must have one axis"),
        (X, LABELS - 1, "label -1"),
        (
            X,
            LABELS * 1.0 + np.where(LABELS == 1, np.inf, 0),
            "y must be finite in float32, got inf at index 1",
        ),
        (X, np.where(LABELS == 1, 3, LABELS), "no training example of 1 of the 4 classes.*class 1;"),
        (X, np.where(LABELS == 2, 2**31 - 1, LABELS), "no training example of 21.* among them class 2, 3, 4"),
        (X, LABELS + 1, "no training example.*class 0;"),
    ],
)
def test_bad_training_data_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        Dataset.from_arrays(x, y)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"class_names": ["a", "b"]}, ValueError, "class_names has 2 names, but y has the label 2"),
        ({"class_names": ["a", "b", "c", "d"]}, ValueError, r"class 3 \(d\)"),
        ({"class_names": ["a", "b", "a"]}, ValueError, "differ from each other"),
        ({"class_names": [1, 2, 3]}, TypeError, "class_names must be None, or a sequence of strings"),
        ({"test": (X[:, :2], LABELS)}, ValueError, r"test has data of shape \(2,\), train \(3,\)"),
        ({"test": (X, LABELS[:3])}, ValueError, "test y has 3 entries for 8 inputs"),
        ({"test": (X, LABELS + 1)}, ValueError, "test y: labels must be integers from 0 to 2.*row 2 has 3; they seem"),
        ({"test": (X, LABELS + 0.5)}, ValueError, "test y must hold class labels"),
        ({"test": (X[:0], LABELS[:0])}, ValueError, "test x is empty"),
        ({"test": X}, TypeError, "test must be a pair"),
    ],
)
def test_bad_names_and_test_splits_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Dataset.from_arrays(X, LABELS, **arguments)


def test_fractional_labels_are_refused_where_names_say_classification():
    with pytest.raises(ValueError, match=r"y must hold class labels 0, 1, ..., got 0.5 at index 1"):
        Dataset.from_arrays(X[:3], np.array([0.0, 0.5, 1.0]), class_names=["a", "b"])


def test_images_with_a_test_split_of_floats_are_refused():
    with pytest.raises(ValueError, match="test has float32 inputs, train has uint8"):
        Dataset.from_arrays(IMAGES, LABELS, test=(IMAGES / 255.0, LABELS))


def test_what_is_no_number_is_refused():
    with pytest.raises(TypeError, match="x must hold real numbers, got complex128"):
        Dataset.from_arrays(X.astype(complex), LABELS)
    with pytest.raises(TypeError, match="y must be an array of numbers"):
        Dataset.from_arrays(X, LABELS.astype(str))


def test_regression_with_integer_test_targets_reads_them_as_floats():
    data = Dataset.from_arrays(X, LABELS * 0.5, test=(X, LABELS))
    assert data.test.y.dtype == np.float32


def test_arrays_are_read_only_and_those_of_the_user_stay_writable():
    raw = IMAGES.copy()
    data = Dataset.from_arrays(raw, LABELS)
    for array in (data.train.raw, data.train.y, data.train.x):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    raw[0] = 0
    assert raw[0].max() == 0


def test_subset_and_head():
    split = Dataset.from_arrays(X, LABELS).train
    np.testing.assert_array_equal(split.subset([5, 0]).raw, X[[5, 0]])
    np.testing.assert_array_equal(split.subset([5, 0]).y, LABELS[[5, 0]])
    np.testing.assert_array_equal(split.subset(LABELS == 1).x, X[LABELS == 1])
    assert len(split.head(3)) == 3
    np.testing.assert_array_equal(split.head(3).raw, X[:3])
    assert split.head(100).num_data == 8
    assert split.head(1).feature_shape == (3,)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([8], r"indices must be in \[0, 8\), got 8 to 8"),
        ([-1], r"got -1 to -1"),
        ([0.5], "integers or booleans"),
        ([True], "1 booleans for 8 data"),
        (np.zeros(8, bool), "at least one datum"),
    ],
)
def test_bad_indices_are_refused(indices, message):
    with pytest.raises(ValueError, match=message):
        Dataset.from_arrays(X, LABELS).train.subset(indices)
    with pytest.raises(ValueError, match="n must be at least 1"):
        Dataset.from_arrays(X, LABELS).train.head(0)


def test_split_validation_moves_the_same_share_of_every_class():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    x = np.arange(100.0)[:, None]
    data = Dataset.from_arrays(x, labels)
    parted = data.split_validation(0.3, jax.random.key(0))
    np.testing.assert_array_equal(np.bincount(parted.validation.y), [15, 9, 6])
    np.testing.assert_array_equal(parted.class_counts(), [35, 21, 14])
    everything = np.concatenate([parted.train.raw[:, 0], parted.validation.raw[:, 0]])
    np.testing.assert_array_equal(np.sort(everything), x[:, 0])
    np.testing.assert_array_equal(labels[parted.validation.raw[:, 0].astype(int)], parted.validation.y)
    again = data.split_validation(0.3, jax.random.key(0))
    np.testing.assert_array_equal(again.validation.raw, parted.validation.raw)
    other = data.split_validation(0.3, jax.random.key(1))
    assert not np.array_equal(other.validation.raw, parted.validation.raw)
    assert data.validation is None


def test_split_validation_leaves_an_example_of_every_class():
    parted = Dataset.from_arrays(X, LABELS).split_validation(0.9, jax.random.key(0))
    np.testing.assert_array_equal(parted.class_counts(), [1, 1, 1])


def test_split_validation_of_regression_moves_a_random_part():
    data = Dataset.from_arrays(np.arange(200.0)[:, None], np.arange(200.0))
    parted = data.split_validation(0.25, jax.random.key(3))
    assert (len(parted.train), len(parted.validation)) == (150, 50)
    np.testing.assert_array_equal(parted.validation.y, parted.validation.raw[:, 0])
    # Not a block: the mean of a random quarter is within 5 standard errors of the mean of all.
    standard_error = np.sqrt(200**2 / 12 / 50 * 0.75)
    assert abs(parted.validation.y.mean() - 99.5) < 5 * standard_error


def test_split_validation_refuses_what_makes_no_sense():
    data = Dataset.from_arrays(X, LABELS)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\)"):
        data.split_validation(1.0, key)
    with pytest.raises(ValueError, match="moves nothing"):
        data.split_validation(0.01, key)
    with pytest.raises(ValueError, match="already has a validation split"):
        data.split_validation(0.5, key).split_validation(0.5, key)


def test_repr_fits_in_a_few_lines():
    data = Dataset.from_arrays(IMAGES, LABELS, test=(IMAGES, LABELS), normalize=True, zca=True)
    data = data.split_validation(0.5, jax.random.key(0))
    lines = repr(data).splitlines()
    assert len(lines) <= 3
    assert max(map(len, lines)) <= 120
    for word in ("custom", "train", "validation", "test", "(4, 4, 1)", "3 classes", "zca=16 features"):
        assert word in repr(data)
    assert len(repr(data.train)) < 100


def test_a_dataset_of_unequal_splits_is_refused():
    preprocessing = Preprocessing()
    train = Split(X.astype(np.float32), LABELS.astype(np.int32), preprocessing)
    with pytest.raises(ValueError, match="num_classes is None"):
        Dataset("d", train, None, None, preprocessing, None)
    with pytest.raises(ValueError, match="class_names has 2 names for 3 classes"):
        Dataset("d", train, None, ("a", "b"), preprocessing, 3)
    with pytest.raises(ValueError, match=r"\(n, \*feature_shape\)"):
        Split(train.raw, train.y[:3], preprocessing)
    with pytest.raises(ValueError, match="uint8 or float32"):
        Split(X.astype(np.int64), train.y, preprocessing)


def test_model_inputs_are_concrete_inside_jit() -> None:
    """The first use of ``x`` may be inside a compiled function that closes over the split."""
    split = Dataset.from_arrays(np.arange(12.0).reshape(6, 2), np.arange(6) % 2, normalize=True).train
    inside = jax.jit(lambda: jax.numpy.sum(split.x, axis=0))()
    np.testing.assert_allclose(inside, split.x.sum(0), atol=1e-6)
