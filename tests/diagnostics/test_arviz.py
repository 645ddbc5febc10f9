"""The DataTree: groups, names, values, attributes, netCDF, and ArviZ's own functions on it."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from types import SimpleNamespace

import arviz_stats
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray

from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.diagnostics import to_arviz
from pseudocoreset.inference import Posterior
from pseudocoreset.models import Model, gaussian_location


@pytest.fixture(scope="module")
def tree(run: dict[str, Posterior], network: Model, coreset: Pseudocoreset) -> xarray.DataTree:
    return to_arviz(run["coreset"], coreset=coreset, max_inputs=20)


def test_groups_and_dimensions(tree: xarray.DataTree) -> None:
    assert set(tree.children) == {
        "posterior",
        "sample_stats",
        "log_likelihood",
        "observed_data",
        "constant_data",
        "posterior_predictive",
    }
    posterior = tree["posterior"]
    assert posterior["f"].dims == ("chain", "draw", "input", "output")
    assert posterior["probabilities"].dims == ("chain", "draw", "input", "class")
    assert posterior["f"].shape == (2, 40, 20, 3)
    assert tree["log_likelihood/y"].dims == ("chain", "draw", "input")
    assert tree["posterior_predictive/y"].dims == ("chain", "draw", "input")
    assert tree["observed_data/y"].dims == ("input",)
    assert tree["sample_stats/lp"].dims == ("chain", "draw")
    assert list(posterior["class"].values) == ["top", "<middle>", "bottom & last"]


def test_values_are_those_of_the_kept_inputs(tree: xarray.DataTree, run: dict[str, Posterior], images: Dataset) -> None:
    kept = tree["posterior/input"].values
    assert kept[0] == 0
    assert kept[-1] == 29
    assert len(np.unique(kept)) == 20
    posterior = run["coreset"]
    np.testing.assert_array_equal(tree["posterior/f"].values, posterior.function_values[:, :, kept])
    np.testing.assert_array_equal(tree["log_likelihood/y"].values, posterior.log_likelihood[:, :, kept])
    np.testing.assert_array_equal(tree["observed_data/y"].values, images.test.y[kept])
    np.testing.assert_array_equal(tree["constant_data/input_index"].values, kept)
    expected = np.asarray(jax.nn.softmax(tree["posterior/f"].values, axis=-1))
    np.testing.assert_allclose(tree["posterior/probabilities"].values, expected, rtol=1e-5)


def test_a_model_of_inputs_has_observed_them(tools: SimpleNamespace) -> None:
    random = np.random.default_rng(0)
    split = tools.make_split(random.standard_normal((7, 2)), np.zeros(7, np.float32))
    located = tools.make_posterior(gaussian_location(), split, {"theta": random.standard_normal((2, 5, 2))})
    tree = to_arviz(located, max_inputs=4, key=jax.random.key(0))
    observed, predicted = tree["observed_data/y"], tree["posterior_predictive/y"]
    np.testing.assert_array_equal(observed.values, split.x[tree["constant_data/input_index"].values])
    assert predicted.dims == ("chain", "draw", *observed.dims)


def test_the_coreset_is_in_constant_data(tree: xarray.DataTree, coreset: Pseudocoreset) -> None:
    constant = tree["constant_data"]
    np.testing.assert_array_equal(constant["coreset_inputs"].values, coreset.inputs)
    np.testing.assert_array_equal(constant["coreset_targets"].values, coreset.targets)
    np.testing.assert_array_equal(constant["coreset_weights"].values, coreset.weights)
    assert constant["coreset_inputs"].dims[0] == constant["coreset_weights"].dims[0] == "coreset_point"
    assert tree.attrs["coreset_mass"] == coreset.mass == 6


def test_attributes_say_what_made_it(tree: xarray.DataTree) -> None:
    assert tree.attrs["kernel"] == "sghmc"
    assert tree.attrs["temperature"] == 1.0
    assert tree.attrs["creation_library"] == "pseudocoreset"
    assert "created_at" in tree.attrs
    assert json.loads(tree.attrs["key"])["data"] == [0, 1]
    assert {"pseudocoreset", "jax", "numpyro", "blackjax"} <= set(json.loads(tree.attrs["versions"]))


def test_netcdf_round_trip(tree: xarray.DataTree, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "posterior.nc"
    tree.to_netcdf(path, engine="h5netcdf")
    with xarray.open_datatree(path, engine="h5netcdf") as back:
        xarray.testing.assert_equal(back.load(), tree)
        assert back.attrs == tree.attrs


def test_arviz_reads_it(tree: xarray.DataTree) -> None:
    summary = arviz_stats.summary(tree, var_names=["probabilities"], coords={"input": [0]})
    assert len(summary) == 3
    assert "r_hat" in summary.columns
    assert arviz_stats.rhat(tree)["f"].shape == (20, 3)


def test_predictive_targets_follow_the_probabilities(
    softmax: tuple[Model, object], softmax_posterior: Posterior
) -> None:
    tree = to_arviz(softmax_posterior, key=jax.random.key(3))
    drawn = tree["posterior_predictive/y"].values
    probabilities = tree["posterior/probabilities"].values.astype(float)
    for label in range(3):
        p = probabilities[..., label]
        # 12,000 independent Bernoulli draws with known probabilities
        error = np.sqrt((p * (1 - p)).sum())
        assert abs((drawn == label).sum() - p.sum()) < 4.5 * error
    again = to_arviz(softmax_posterior, key=jax.random.key(3))
    assert (again["posterior_predictive/y"].values == drawn).all()
    assert (to_arviz(softmax_posterior, key=jax.random.key(4))["posterior_predictive/y"].values != drawn).any()


def test_predictive_targets_need_a_key_from_somewhere(
    run: dict[str, Posterior], network: Model, softmax: tuple[Model, object], softmax_posterior: Posterior
) -> None:
    first, second = (to_arviz(run["coreset"])["posterior_predictive/y"].values for _ in range(2))
    assert (first == second).all()
    assert "posterior_predictive" not in to_arviz(softmax_posterior).children


def test_weights_of_a_network_only_on_request(
    run: dict[str, Posterior], network: Model, tmp_path: pathlib.Path
) -> None:
    posterior = run["full"]
    assert set(to_arviz(posterior)["posterior"].data_vars) == {"f", "probabilities"}
    tree = to_arviz(posterior, include_weights=True)
    for name, values in posterior.draws.items():
        np.testing.assert_array_equal(tree["posterior"][name.replace("/", ".")].values, values)
    tree.to_netcdf(tmp_path / "weights.nc", engine="h5netcdf")


def test_small_models_keep_their_sites(softmax: tuple[Model, object], softmax_posterior: Posterior) -> None:
    tree = softmax_posterior.to_arviz()
    assert set(tree["posterior"].data_vars) == {"weights", "scale", "f", "probabilities"}
    of_none = dataclasses.replace(softmax_posterior, model=None).to_arviz(key=jax.random.key(0))
    assert set(of_none["posterior"].data_vars) == {"weights", "scale", "f"}
    assert "posterior_predictive" not in of_none.children
    assert tree["posterior/weights"].shape == (4, 50, 2, 3)
    np.testing.assert_array_equal(tree["posterior/scale"].values, softmax_posterior.draws["scale"])


def test_a_posterior_without_held_out_data(softmax_posterior: Posterior) -> None:
    bare = {"function_values": None, "log_likelihood": None, "predict_on": None}
    tree = to_arviz(type(softmax_posterior)(**{**vars(softmax_posterior), **bare}))
    assert set(tree.children) == {"posterior", "sample_stats"}


def test_regression_targets_are_drawn_from_the_likelihood(tools: SimpleNamespace) -> None:
    random = np.random.default_rng(5)
    split = tools.make_split(random.standard_normal((50, 2)), random.standard_normal(50).astype(np.float32))
    model = Model.from_numpyro(tools.linear).bind(split.x, split.y)
    posterior = tools.make_posterior(model, split, tools.random_draws(model, split, seed=2))
    tree = to_arviz(posterior, key=jax.random.key(0))
    assert "probabilities" not in tree["posterior"].data_vars
    noise = posterior.draws["noise"][..., None]
    scaled = (tree["posterior_predictive/y"].values - posterior.function_values[..., 0]) / noise
    assert abs(scaled.mean()) < 4.5 / np.sqrt(scaled.size)
    assert abs((scaled**2).mean() - 1) < 4.5 * np.sqrt(2 / scaled.size)


def test_bad_arguments(softmax: tuple[Model, object], softmax_posterior: Posterior) -> None:
    with pytest.raises(ValueError, match="max_inputs"):
        to_arviz(softmax_posterior, max_inputs=0)
    with pytest.raises(TypeError, match="typed key"):
        to_arviz(softmax_posterior, key=3)


@pytest.mark.parametrize(
    ("sites", "stored"),
    [
        (["part/a", "part.a", "draws/x"], ["part.a_1", "part.a", "draws.x"]),
        (["part.a", "part/a"], ["part.a", "part.a_1"]),
        (["a/b/c", "a.b/c", "a/b.c", "a.b.c_1"], ["a.b.c", "a.b.c_2", "a.b.c_3", "a.b.c_1"]),
        (["chain", "draw", "f"], ["chain_1", "draw_1", "f"]),
        (["w", "w_dim_0"], ["w", "w_dim_0_1"]),
        (["sample_stats/lp", "unconstrained/w", "lp"], ["sample_stats.lp", "unconstrained.w", "lp"]),
    ],
)  # fmt: skip
def test_no_site_is_written_over_another(sites: list[str], stored: list[str], tmp_path: pathlib.Path) -> None:
    """Through a tree, netCDF and our own files: every site comes back with its own draws."""
    random = np.random.default_rng(0)
    draws = {name: random.normal(size=(2, 5, 3) if name == "w" else (2, 5)).astype(np.float32) for name in sites}
    posterior = Posterior(
        draws=draws, unconstrained=draws, function_values=None, log_likelihood=None,
        sample_stats={"lp": np.zeros((2, 5))}, predict_on=None, metadata={},
    )  # fmt: skip
    to_arviz(posterior).to_netcdf(tmp_path / "p.nc", engine="h5netcdf")
    back = xarray.open_datatree(tmp_path / "p.nc", engine="h5netcdf")
    for site, name in zip(sites, stored, strict=True):
        np.testing.assert_array_equal(back["posterior"].dataset[name].values, draws[site])
    renamed = json.loads(back.attrs.get("renamed_sites", "{}"))
    assert renamed == {new: old for old, new in zip(sites, stored, strict=True) if new != old}
    back.close()
    posterior.save(tmp_path / "p")
    again = Posterior.load(tmp_path / "p")
    for group in (again.draws, again.unconstrained):
        assert group.keys() == draws.keys()
        assert all(np.array_equal(group[name], values) for name, values in draws.items())


def test_sites_named_as_what_stands_beside_them(tools: SimpleNamespace) -> None:
    """A latent site "probabilities", which the tree has of its own."""

    def program(x: jax.Array, y: jax.Array | None = None) -> None:
        weights = numpyro.sample("probabilities", dist.Normal(0, 1).expand((x.shape[1],)).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Bernoulli(logits=x @ weights), obs=y)

    random = np.random.default_rng(0)
    split = tools.make_split(random.normal(size=(8, 2)), random.integers(0, 2, 8).astype(np.int32))
    model = Model.from_numpyro(program).bind(split.x, split.y)
    posterior = tools.make_posterior(model, split, {"probabilities": random.normal(size=(2, 3, 2))})
    group = to_arviz(posterior)["posterior"].dataset
    assert group["probabilities"].shape == (2, 3, 8, 2)
    np.testing.assert_array_equal(group["probabilities_1"].values, posterior.draws["probabilities"])


def test_another_coreset_than_that_sampled_on_is_refused(run: dict[str, Posterior], images: Dataset) -> None:
    other = Pseudocoreset.from_data(images, images_per_class=2, key=jax.random.key(5))
    with pytest.raises(ValueError, match="not one that these posteriors were sampled on"):
        to_arviz(run["coreset"], coreset=other)
