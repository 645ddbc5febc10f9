"""The command ``evaluate``, at a small size; the rest of them are in ``test_demo.py``."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from pseudocoreset import Experts, Pseudocoreset, load_dataset
from pseudocoreset.cli import app

NETWORK = ["--data", "digits", "--width", "2", "--depth", "1"]


@pytest.fixture(scope="module")
def coreset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coresets") / "coreset"
    Pseudocoreset.from_data(load_dataset("digits"), size=10, key=jax.random.key(0)).save(folder)
    return folder


def run(*arguments, fails=False):
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=fails)
    assert (result.exit_code != 0) == fails, result.output
    return result


def test_evaluate_prints_a_table_of_networks_and_writes_the_figures(coreset, tmp_path):
    file = tmp_path / "figures.json"
    few = ["--set", "num_epochs=2", "--set", "num_networks=2", "--set", "augment=null", "--protocol", "distillation"]
    networks = ["--network", "convnet", "--network", "lenet"]
    printed = run("evaluate", coreset, *few, *networks[:2], "--split", "test", "--json", file, *NETWORK).stdout
    assert "ConvNet by 'distillation' on 355 test data, 2 repeats" in printed
    content = json.loads(file.read_text())
    assert len(content["metrics"]["accuracy"]["values"]) == 2
    assert content["settings"]["num_epochs"] == 2
    assert f"{content['metrics']['accuracy']['mean']:.3f}" in printed
    # Digits of 8x8 pixels are too small for LeNet, which is therefore seen to be asked.
    failed = run("evaluate", coreset, *few, *networks, *NETWORK, fails=True)
    assert "LeNet needs sides of at least 16 pixels" in str(failed.exception)


def test_a_coreset_of_the_package_goes_by_its_name():
    few = ["--protocol", "distillation", "--set", "num_epochs=2", "--set", "num_networks=1", "--set", "augment=null"]
    assert "accuracy" in run("evaluate", "digits-fbpc-1", *few, *NETWORK).output


def on_two_devices(*arguments):
    """Devices are made before the first is used: in a process of its own."""
    script = (
        "import sys, jax; from pseudocoreset.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "assert jax.device_count() == 2"
    )
    command = [sys.executable, "-c", script, *map(str, arguments), "--devices", "2"]
    subprocess.run(command, check=True, timeout=300)


@pytest.mark.slow
def test_two_devices_share_the_data_of_one_expert_and_of_a_fit(tmp_path):
    experts = ["experts", "--num-experts", "1", "--num-epochs", "2", *NETWORK, "--out"]
    run(*experts, tmp_path / "one")
    on_two_devices(*experts, tmp_path / "two")
    one, two = (Experts.load(tmp_path / name).snapshot(0, 2) for name in ("one", "two"))
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, rtol=1e-5, atol=1e-6)
    fit = ["fit", "--experts", tmp_path / "one", "--steps", "2", "--step-size", "1", *NETWORK, "--out"]
    run(*fit, tmp_path / "coreset-one")
    on_two_devices(*fit, tmp_path / "coreset-two")
    one, two = (Pseudocoreset.load(tmp_path / f"coreset-{name}").inputs for name in ("one", "two"))
    # A ReLU near zero may be on by one order of summation and off by another: the few pixels that it sees differ.
    assert np.mean(np.isclose(two, one, rtol=1e-4, atol=1e-5)) > 0.95
    start = load_dataset("digits").train.x
    assert np.abs(one[:, None] - start).max((2, 3, 4)).min() > 0.005  # a hundred times what may differ


def test_two_devices_made_of_a_cpu_score_as_one_does(coreset, tmp_path):
    arguments = [
        "evaluate",
        str(coreset),
        "--protocol",
        "distillation",
        "--set",
        "num_epochs=2",
        "--set",
        "augment=null",
    ]
    arguments += ["--set", "num_networks=3", *NETWORK, "--json"]
    run(*arguments, tmp_path / "one.json")
    on_two_devices(*arguments, tmp_path / "two.json")
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert two["metrics"]["accuracy"]["values"] == one["metrics"]["accuracy"]["values"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "num_epochs"], "NAME=VALUE"),
        (["--network", "transformer"], "network='transformer'"),
        (["--protocol", "kim2023"], "protocol='kim2023'"),
        (["--devices", "3"], "--devices 3: JAX has"),
    ],
)
def test_evaluate_names_what_it_does_not_know(coreset, arguments, message):
    result = run("evaluate", coreset, *arguments, *NETWORK, fails=True)
    assert message in result.output + str(result.exception)


def test_nothing_finished_is_overwritten_unasked(coreset, tmp_path):
    """Refused before anything runs, and again with --overwrite where the folder holds something else."""
    before = (coreset / "manifest.json").read_text()
    failed = run("fit", "--out", coreset, *NETWORK, fails=True)
    assert "is there already; give another place, or --overwrite" in " ".join(failed.output.replace("│", " ").split())
    assert (coreset / "manifest.json").read_text() == before
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years of work")
    for flag in ([], ["--overwrite"]):
        assert run("fit", "--out", thesis, *flag, *NETWORK, fails=True).exit_code == 2
        assert run("demo", "--out", thesis, *flag, fails=True).exit_code == 2
    assert (thesis / "chapter.tex").read_text() == "years of work"
    page = tmp_path / "page.html"
    page.write_text("mine")
    assert run("report", "full=x", "--out", page, *NETWORK, fails=True).exit_code == 2
    assert run("evaluate", coreset, "--json", page, *NETWORK, fails=True).exit_code == 2
    assert page.read_text() == "mine"


def test_a_fit_goes_on_from_checkpoints_inside_its_own_folder(tmp_path, monkeypatch):
    out, inside = tmp_path / "run", tmp_path / "run" / "checkpoints"
    few = ["fit", "--method", "distribution_matching", "--steps", "2", *NETWORK, "--out", out, "--checkpoint-dir"]
    assert run(*few, out, fails=True).exit_code == 2
    with monkeypatch.context() as patch:
        patch.setattr(Pseudocoreset, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*few, inside, fails=True).exit_code == 130
    left = {file.relative_to(inside): file.read_bytes() for file in inside.rglob("*") if file.is_file()}
    assert left
    run(*few, inside)
    assert Pseudocoreset.load(out).size == 10
    assert {file.relative_to(inside) for file in inside.rglob("*") if file.is_file()} >= set(left)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    again = run(*few, inside, fails=True)
    assert again.exit_code == 2  # the coreset is there


def test_the_command_fits_at_the_mass_of_the_data_and_says_what_another_means(tmp_path):
    few = ["--method", "distribution_matching", "--steps", "1", *NETWORK, "--out"]
    printed = run("fit", *few, tmp_path / "a").output
    learned = Pseudocoreset.load(tmp_path / "a")
    assert learned.mass == pytest.approx(load_dataset("digits").train.num_data)
    assert "with_mass" not in printed
    printed = run("fit", "--weights", "ones", *few, tmp_path / "b").output
    assert Pseudocoreset.load(tmp_path / "b").mass == pytest.approx(10)
    assert "coreset.with_mass('data')" in " ".join(printed.split())
    assert "NOT KNOWN: the posterior of a network has many modes" in " ".join(printed.split())
    replaced = run("fit", "--overwrite", "--no-verdict", "--seed", "1", *few, tmp_path / "b")
    assert replaced.exit_code == 0
    assert "NOT KNOWN" not in replaced.output
    assert Pseudocoreset.load(tmp_path / "b").digest != learned.digest
    draws = ["--num-chains", "1", "--num-warmup", "1", "--num-samples", "2", "--thinning", "1", *NETWORK]
    said = run("sample", "--coreset", tmp_path / "a", "--mass", "ones", "--out", tmp_path / "thin", *draws).output
    assert "coreset.with_mass('data')" in " ".join(said.split())
    run("sample", "--coreset", tmp_path / "b", "--out", tmp_path / "other", *draws)
    pairs = [f"full={tmp_path / 'other'}"]
    wrong = run("report", *pairs, "--coreset", tmp_path / "a", "--out", tmp_path / "r.html", *NETWORK, fails=True)
    assert "not one that these posteriors were sampled on" in str(wrong.exception)
    run("report", *pairs, "--coreset", tmp_path / "b", "--out", tmp_path / "r.html", *NETWORK)
    wide = ["--data", "digits", "--width", "3", "--depth", "1"]
    wrong = run("compare", *pairs, *wide, fails=True)
    assert "the posterior 'full' is of the model" in str(wrong.exception)
