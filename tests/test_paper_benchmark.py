"""The comparison with the papers in ``benchmarks/paper``: grids, cells that go on, tables of what was run."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

import pseudocoreset
from pseudocoreset.models import ConvNet

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
PUBLISHED = json.loads((FOLDER / "paper" / "published.json").read_text())
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def scripts():
    """The modules, which import one another by their file's name as scripts do."""
    before, loaded = list(sys.path), set(sys.modules)
    sys.path[:0] = [str(FOLDER / "paper"), str(FOLDER)]
    try:
        yield {name: importlib.import_module(name) for name in ("cells", "run", "table", "costs")}
    finally:
        sys.path[:] = before
        for name in set(sys.modules) - loaded:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
                del sys.modules[name]


@pytest.fixture(scope="module")
def cells(scripts) -> ModuleType:
    return scripts["cells"]


@pytest.fixture(scope="module")
def run(scripts) -> ModuleType:
    return scripts["run"]


@pytest.fixture(scope="module")
def tiny(cells):
    """Digits with next to no work: one network that is learned with, one that is given the coreset."""
    return replace(
        cells.DIGITS,
        name="tiny",
        networks={"ConvNet": ConvNet(depth=1, width=2), "ConvNet, group": ConvNet(depth=1, width=4, norm="group")},
        learning={
            "random": {1: {}},
            "distribution_matching": {1: dict(steps=4, step_size=0.1, batch_size=4)},
        },
        protocols={"distillation": {None: dict(num_networks=1, num_epochs=3)}},
        transfer=("random",),
        transfer_protocol="distillation",
        sizes=(1,),
        seeds=SEEDS,
        num_test=20,
    )


@pytest.fixture
def paths(tmp_path, tiny, cells, run, scripts, monkeypatch):
    """Arguments of a run of the tiny grid."""
    for module in (cells, run, scripts["table"]):
        monkeypatch.setitem(module.GRIDS, "tiny", (tiny,))
    # The folder of compiled programs is that of all tests here.
    monkeypatch.setattr(run.jax.config, "update", lambda *_: None)
    return ["--grid", "tiny", "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]


def records(paths) -> list[dict]:
    file = Path(paths[5]) / "tiny.json"
    return json.loads(file.read_text())["cells"] if file.exists() else []


def test_grids_are_well_formed(cells):
    names = set()
    for scales in cells.GRIDS.values():
        for scale in scales:
            every = list(cells.cells(scale))
            assert every
            assert len(set(map(str, every))) == len(every)
            assert scale.name not in names
            names.add(scale.name)
            for cell in every:
                method = cells.METHODS[cell.method]
                assert callable(getattr(pseudocoreset, method.fit))
                assert set(method.networks) <= set(scale.networks)
                json.dumps(cells.settings(scale, cell))


def test_cpu_grid_has_every_method_on_every_data_set(cells):
    for scale in cells.GRIDS["cpu"]:
        assert set(scale.learning) == set(cells.METHODS)
        assert all(set(by_size) == {1, 10} for by_size in scale.learning.values())
        assert len(scale.seeds) == 3


def test_digest_tells_settings_apart(cells):
    cell = next(cells.cells(cells.DIGITS))
    one = cells.settings(cells.DIGITS, cell)
    assert cells.digest(one) == cells.digest(cells.settings(cells.DIGITS, cell))
    assert cells.digest(one) != cells.digest(cells.settings(replace(cells.DIGITS, num_test=7), cell))


def test_published_figures_are_of_the_grid(cells):
    every = {(scale.data, network) for s in cells.GRIDS.values() for scale in s for network in scale.networks}
    seen = set()
    for one in PUBLISHED["figures"]:
        assert one["method"] in cells.METHODS
        assert (one["data"], one["network"]) in every
        assert one["source"] in PUBLISHED["sources"]
        assert 0 < one["accuracy"][0] < 100
        name = tuple(one[key] for key in ("data", "method", "network", "images_per_class", "protocol", "source"))
        assert name not in seen
        seen.add(name)


def test_list_runs_nothing_and_says_what_cells_cost(paths, run, capsys):
    run.main([*paths, "--list"])
    printed = capsys.readouterr().out.splitlines()
    assert "tiny/random/1/ConvNet, group/distillation/0  " in printed[1]
    assert all(line.endswith(" s") for line in printed[:-1])
    assert printed[-1].startswith("tiny: 6 cells, 0 done; about ")
    assert not records(paths)


def test_cells_run_once_and_the_table_shows_those_only(paths, run, scripts, tiny, monkeypatch):
    table = scripts["table"]
    only = [*paths, "--only", "tiny/*/ConvNet/*"]

    def document(**changes) -> str:
        return table.document(Path(paths[5]), PUBLISHED | changes, {"tiny": (tiny,)})

    assert "Nothing has been run" in document()
    run.main([*only, "--seeds", "0"])
    first = records(paths)
    assert [(one["method"], one["seed"]) for one in first] == [("random", 0), ("distribution_matching", 0)]
    assert all(one["metrics"]["accuracy"][0] > 0 and len(one["key"]) == 2 for one in first)
    assert first[1]["fit"]["outcome"] == "COMPLETED"

    text = document()
    assert "protocol `distillation`" in text
    assert "num_epochs = 3" in text
    assert "| DM | 1 |" in text
    assert "herding" not in text
    assert "ConvNet, group" not in text
    assert "Not run yet: 2 of 4 cells." in text
    assert "published accuracy" not in text

    # A figure stands beside ours only where it is by the same protocol.
    figure = dict(data="digits", method="random", images_per_class=1, network="ConvNet", accuracy=[90.0, 1.0])
    figure |= dict(nll=[1.5, None], source="kim2023", where="Table 0")
    assert "| 90.00 ± 1.00 | 1.50 |" not in document(figures=[figure | {"protocol": "fbpc2023"}])
    beside = document(figures=[figure | {"protocol": "distillation"}])
    assert "| 90.00 ± 1.00 | 1.50 |" in beside
    assert "kim2023, Table 0" in beside
    assert "no failure to reproduce" in beside

    # What is done is neither learned nor scored again, and what is learned is kept.
    fits = []
    fit = run.Bench.fit
    monkeypatch.setattr(
        run.Bench, "fit", lambda self, cell, *a, **k: fits.append(str(cell)) or fit(self, cell, *a, **k)
    )
    run.main(only)
    assert records(paths)[:2] == first
    assert fits == [f"tiny/{name}/1/ConvNet/distillation/1" for name in ("random", "distribution_matching")]
    run.main([*paths, "--only", "tiny/*group*"])
    assert len(fits) == 2
    assert "Not run yet" not in document()


def test_minutes_stop_a_run_in_the_middle_of_a_fit(paths, run, capsys, monkeypatch):
    only = [*paths, "--only", "tiny/distribution*", "--seeds", "0"]
    times = iter([0.0, 0.0])  # of the start, and of the cell; then time is up
    monkeypatch.setattr(run.time, "monotonic", lambda: next(times, 1e9))
    run.main([*only, "--minutes", "1"])
    assert "the minutes are over" in capsys.readouterr().out
    assert not records(paths)
    assert list((Path(paths[3]) / "tiny" / "checkpoints").iterdir())
    monkeypatch.undo()


def test_pairs_are_ordered_beyond_their_noise(scripts):
    table = scripts["table"]

    def row(method, accuracy, published):
        figure = {"accuracy": [published, 1.0], "source": "kim2023"}
        return table.Row(method, 1, 3, {"accuracy": (accuracy, 0.01)}, figure)

    rows = [row("random", 0.2, 20.0), row("function_kl", 0.4, 40.0), row("forward_kl", 0.401, 30.0)]
    same, opposite, close = table.order(rows)
    assert same == ["FBPC over random images (1)", "BPC-fKL over random images (1)"]
    assert not opposite
    assert close == ["FBPC over BPC-fKL (1)"]
    _, opposite, _ = table.order([row("random", 0.4, 20.0), row("function_kl", 0.2, 40.0)])
    assert opposite == ["FBPC over random images (1)"]
