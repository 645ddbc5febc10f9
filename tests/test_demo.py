"""The demonstration, the README's lines and the command, at a small size."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import xarray
from typer.testing import CliRunner

from pseudocoreset import Pseudocoreset
from pseudocoreset.cli import app
from pseudocoreset.demo import DemoSettings, run_demo

SMALL = DemoSettings(
    depth=1,
    width=2,
    proxy_steps=2,
    num_experts=1,
    num_expert_epochs=1,
    steps=2,
    num_chains=2,
    num_warmup=10,
    num_samples=4,
    thinning=1,
)
ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_demo_writes_what_it_promises(tmp_path):
    returned = run_demo(tmp_path / "demo", key=jax.random.key(0), settings=SMALL, progress=False)
    folder = tmp_path / "demo"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == returned
    for name in ("fbpc", "random", "full"):
        assert {"accuracy", "nll", "brier", "ece"} <= metrics[name].keys()
        assert 0 <= metrics[name]["accuracy"] <= 1
        tree = xarray.open_datatree(folder / f"{name}.nc", engine="h5netcdf")
        assert {
            "posterior",
            "sample_stats",
            "log_likelihood",
            "posterior_predictive",
            "constant_data",
        } <= set(tree.children)
        assert tree["posterior"].sizes["chain"] == 2
        tree.close()
    assert metrics["agreement"].keys() == {"fbpc", "random"}
    assert metrics["seconds"]["total"] > 0
    fbpc, random = Pseudocoreset.load(folder / "coreset"), Pseudocoreset.load(folder / "random")
    assert fbpc.size == random.size == 10
    assert not np.array_equal(fbpc.inputs, random.inputs)
    assert (folder / "coreset.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (folder / "report.html").read_text()


def readme_code():
    text = (ROOT / "README.md").read_text()
    return text.split("```python\n", 1)[1].split("```", 1)[0]


def test_the_readmes_ten_lines_compile():
    code = readme_code()
    compile(code, "README.md", "exec")
    assert len([line for line in code.splitlines() if line.strip() and "import" not in line]) <= 10


@pytest.mark.slow
def test_the_readmes_ten_lines_run(capsys):
    exec(readme_code(), {})
    assert "coreset" in capsys.readouterr().out


def test_the_command_explains_itself():
    runner = CliRunner()
    listing = runner.invoke(app, ["--help"])
    assert listing.exit_code == 0
    for name in ("demo", "experts", "fit", "evaluate", "sample", "compare", "report"):
        assert name in listing.output
        assert runner.invoke(app, [name, "--help"]).exit_code == 0


def test_the_command_goes_all_the_way(tmp_path):
    """experts, fit, sample, compare, report on the bundled digits, each from the files of the one before."""
    runner = CliRunner()
    network = ["--data", "digits", "--width", "2", "--depth", "1"]

    def run(*arguments):
        result = runner.invoke(app, [*map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    experts, coreset = tmp_path / "experts", tmp_path / "coreset"
    run("experts", "--out", experts, "--num-experts", 1, "--num-epochs", 1, "--batch-size", 128, *network)
    run("fit", "--out", coreset, "--experts", experts, "--steps", 2, "--proxy", "isotropic", *network)
    few = ["--num-chains", 2, "--num-warmup", 5, "--num-samples", 4, "--thinning", 1]
    run("sample", "--out", tmp_path / "full", *few, *network)
    run("sample", "--out", tmp_path / "small", "--coreset", coreset, "--mass", "data", *few, *network)
    html = tmp_path / "report.html"
    pairs = [f"full={tmp_path / 'full'}", f"small={tmp_path / 'small'}"]
    assert "small" in run("compare", *pairs, *network)
    run("report", *pairs, "--out", html, "--coreset", coreset, "--title", "Ten <digits>", *network)
    assert "<h1>Ten &lt;digits&gt;</h1>" in html.read_text()


def test_the_command_answers_bad_input_in_one_line():
    command = [
        sys.executable,
        "-c",
        "from pseudocoreset.cli import main; main()",
        "fit",
        "--out",
        "x",
        "--experts",
        "x",
    ]
    answer = subprocess.run([*command, "--data", "cifar[10]"], capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert "cifar[10]" in answer.stderr
    assert "Traceback" not in answer.stderr
