import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from pseudocoreset.data import Dataset, Preprocessing


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    generator = np.random.default_rng(3)
    # Neighbouring pixels depend on each other, so that whitening has something to do.
    noise = generator.normal(size=(300, 4, 5, 3))
    return np.clip(128 + 60 * np.cumsum(noise, axis=2) / 2, 0, 255).astype(np.uint8)


def whitened(images: np.ndarray) -> Preprocessing:
    labels = np.arange(len(images)) % 2
    return Dataset.from_arrays(images, labels, normalize=True, zca=True).preprocessing


def test_apply_scales_and_normalises_every_channel(images):
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.25, 2.0])
    x = Preprocessing(scale=1 / 255, mean=mean, std=std).apply(images)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, (images / 255.0 - mean) / std, rtol=2e-6, atol=1e-6)


def test_zca_equals_the_inverse_root_of_the_regularised_covariance(images):
    preprocessing = whitened(images)
    x = images / 255.0
    x = ((x - x.mean((0, 1, 2))) / x.std((0, 1, 2))).reshape(len(x), -1)
    covariance = np.cov(x, rowvar=False)
    matrix = np.linalg.inv(scipy.linalg.sqrtm(covariance + 0.1 * np.eye(60)).real)
    np.testing.assert_allclose(preprocessing.zca_matrix, matrix, atol=2e-5)
    np.testing.assert_allclose(preprocessing.apply(images).reshape(len(x), -1), (x - x.mean(0)) @ matrix, atol=2e-4)


def test_zca_shrinks_the_covariance_towards_the_identity(images):
    raw = images.reshape(len(images), -1)
    x = np.asarray(whitened(images).apply(images), np.float64).reshape(raw.shape)
    x0 = images / 255.0
    x0 = ((x0 - x0.mean((0, 1, 2))) / x0.std((0, 1, 2))).reshape(raw.shape)
    before = np.linalg.eigvalsh(np.cov(x0, rowvar=False))
    after = np.linalg.eigvalsh(np.cov(x, rowvar=False))
    np.testing.assert_allclose(after, before / (before + 0.1), atol=1e-4)


def test_invert_undoes_apply_up_to_the_scale(images):
    preprocessing = whitened(images)
    np.testing.assert_allclose(preprocessing.invert(preprocessing.apply(images)), images / 255.0, atol=2e-5)


def test_apply_and_invert_under_jit_equal_themselves(images):
    preprocessing = whitened(images)
    x = preprocessing.apply(images)
    np.testing.assert_allclose(jax.jit(preprocessing.apply)(images), x, atol=1e-5)
    np.testing.assert_allclose(jax.jit(preprocessing.invert)(x), preprocessing.invert(x), atol=1e-5)


def test_split_x_in_chunks_equals_apply():
    raw = np.random.default_rng(0).integers(0, 256, (12_001, 2, 2, 1), np.uint8)
    data = Dataset.from_arrays(raw, np.arange(12_001) % 3, normalize=True, zca=True)
    np.testing.assert_allclose(data.train.x, data.preprocessing.apply(raw), atol=1e-6)
    assert data.train.x is data.train.x


def test_results_are_float32_when_x64_is_on(images):
    preprocessing = whitened(images)
    with jax.enable_x64(True):
        x = preprocessing.apply(images.astype(np.float64))
        assert x.dtype == np.float32
        assert preprocessing.invert(x).dtype == np.float32


@pytest.mark.parametrize("form", ["plain", "normalised", "whitened"])
def test_parts_round_trip_bit_for_bit_through_json(images, form):
    preprocessing = {
        "plain": Preprocessing(scale=1 / 255),
        "normalised": Preprocessing(scale=0.1, mean=np.array([0.1]), std=np.array([0.3])),
        "whitened": whitened(images),
    }[form]
    metadata = json.loads(json.dumps(preprocessing.metadata()))
    again = Preprocessing.from_parts(preprocessing.arrays(), metadata)
    assert again.scale == preprocessing.scale
    assert again.arrays().keys() == preprocessing.arrays().keys()
    assert len(again.arrays()) == {"plain": 0, "normalised": 2, "whitened": 4}[form]
    for name, array in preprocessing.arrays().items():
        assert np.array_equal(again.arrays()[name], array)


def test_from_parts_refuses_parts_that_do_not_belong_together(images):
    preprocessing = whitened(images)
    arrays, metadata = preprocessing.arrays(), preprocessing.metadata()
    with pytest.raises(ValueError, match="zca_matrix"):
        Preprocessing.from_parts({k: v for k, v in arrays.items() if k != "zca_matrix"}, metadata)
    with pytest.raises(ValueError, match="'scale' and 'arrays'"):
        Preprocessing.from_parts(arrays, {"scale": 1.0})
    with pytest.raises(ValueError, match="strange"):
        Preprocessing.from_parts({"strange": np.ones(3)}, {"scale": 1.0, "arrays": ["strange"]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.0}, "scale must be positive"),
        ({"scale": float("nan")}, "scale must be positive"),
        ({"mean": np.zeros(3)}, "mean and std are given together"),
        ({"mean": np.zeros(3), "std": np.ones(2)}, "differ in shape"),
        ({"mean": np.zeros(2), "std": np.array([1.0, 0.0])}, "std must be positive"),
        ({"mean": np.zeros((1, 2)), "std": np.ones((1, 2))}, "mean must have 1 axes"),
        ({"mean": np.array([np.nan]), "std": np.ones(1)}, "mean must be finite"),
        ({"zca_mean": np.zeros(3)}, "zca_mean and zca_matrix are given together"),
        ({"zca_mean": np.zeros(3), "zca_matrix": np.eye(4)}, r"zca_matrix must be \(3, 3\)"),
    ],
)
def test_inconsistent_arrays_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**arguments)


def test_data_of_another_shape_are_refused(images):
    preprocessing = whitened(images)
    with pytest.raises(ValueError, match="has 1 channels, mean has 3"):
        preprocessing.apply(images[..., :1])
    with pytest.raises(ValueError, match="has 48 features, ZCA 60"):
        preprocessing.invert(np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"raw must be \(n, \*feature_shape\)"):
        preprocessing.apply(np.zeros(3))


def test_whitening_one_datum_is_refused():
    with pytest.raises(ValueError, match="zca needs at least 2"):
        Dataset.from_arrays(np.ones((1, 3)), np.array([0.5]), zca=True)


@pytest.mark.parametrize("form", [np.asarray, jnp.asarray, np.ndarray.tolist], ids=["numpy", "jax", "list"])
def test_integers_of_32_bits_are_centred_before_they_are_rounded(form):
    """In float32 9 of these 1,000 times differ from each other."""
    times = (1_700_000_000 + np.random.default_rng(0).permutation(1000)).astype(np.int32)[:, None]
    data = Dataset.from_arrays(times, np.zeros(1000, np.float32), normalize=True)
    x = np.asarray(data.preprocessing.apply(form(times)))
    assert x.dtype == np.float32
    exact = times.astype(np.float64)
    np.testing.assert_allclose(x, (exact - exact.mean()) / exact.std(), atol=1e-6)
    np.testing.assert_array_equal(x, data.train.x)
