"""A protocol is one class in one file: `evaluate` and the command know it without an edit elsewhere."""

import dataclasses
import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from pseudocoreset import Pseudocoreset, cli, evaluate, load_dataset
from pseudocoreset.evaluation import PROTOCOLS, Estimate, Evaluations, Protocol, Scored, Task
from pseudocoreset.models import MLP, bnn

DATA = load_dataset("digits")
MODEL = bnn(MLP(widths=(8,)), DATA)
CORESET = Pseudocoreset.from_data(DATA, images_per_class=1, key=jax.random.key(0))
KEY = jax.random.key(1)


@pytest.fixture(scope="module", autouse=True)
def toy() -> Iterator[type[Any]]:
    @dataclasses.dataclass(frozen=True)
    class NearestPoint(Protocol):
        """Held-out data get the label of the nearest point of the coreset; the model is not asked."""

        order: float = 2.0

        name: ClassVar[str] = "nearest_point"

        def run(self, task: Task) -> Scored:
            points = np.asarray(task.coreset.packed).reshape(task.coreset.size, -1)
            x = np.asarray(task.split.x).reshape(len(task.split), -1)
            nearest = np.linalg.norm(x[:, None] - points, ord=self.order, axis=-1).argmin(1)
            right = np.asarray(task.coreset.targets)[nearest] == task.split.y
            scores = {"accuracy": Estimate((float(right.mean()),))}
            return Scored(scores, dataclasses.asdict(self), ("No model was asked.",))

    yield NearestPoint
    del PROTOCOLS["nearest_point"]


def accuracy(split: Any, order: float = 2.0) -> float:
    x, points = (np.asarray(part).reshape(len(part), -1) for part in (split.x, CORESET.packed))
    nearest = np.array([np.argmin([np.linalg.norm(row - point, ord=order) for point in points]) for row in x])
    return float(np.mean(CORESET.targets[nearest] == split.y))


def test_evaluate_knows_it_by_name_and_by_configuration(toy: type[Any]) -> None:
    found = evaluate(CORESET, MODEL, DATA, protocol="nearest_point", split="test", key=KEY)
    assert found.metrics["accuracy"].mean == accuracy(DATA.test) > 0.3
    assert (found.protocol, found.num_data, found.split) == ("nearest_point", len(DATA.test), "test")
    assert found.settings["order"] == 2.0
    assert found.settings["num_points"] == 10
    assert "No model was asked." in repr(found)
    by_one = evaluate(CORESET, MODEL, DATA, protocol="nearest_point", split="test", key=KEY, order=1.0)
    assert by_one.metrics["accuracy"].mean == accuracy(DATA.test, 1.0)
    configured = evaluate(CORESET, MODEL, DATA, protocol=toy(order=1.0), split="test", key=KEY)
    assert configured.metrics == by_one.metrics
    several = evaluate(CORESET, {"a": MODEL, "b": MODEL}, DATA, protocol="nearest_point", key=KEY)
    assert list(several) == ["a", "b"]
    assert "by 'nearest_point'" in repr(several)
    with pytest.raises(ValueError, match=r"'nearest_point' has no 'metric'; its settings are order"):
        evaluate(CORESET, MODEL, DATA, protocol="nearest_point", key=KEY, metric="l1")
    with pytest.raises(ValueError, match=r"protocol='nearest' is unknown.*'default'.*'nearest_point'"):
        evaluate(CORESET, MODEL, DATA, protocol="nearest", key=KEY)


def test_a_score_of_its_own_is_in_the_table_of_networks() -> None:
    found = evaluate(CORESET, {"a": MODEL}, DATA, protocol="nearest_point", key=KEY)["a"]
    found = dataclasses.replace(found, metrics={**found.metrics, "margin": Estimate((0.25,))})
    _, columns, rows = Evaluations({"a": found}).table()
    assert columns == ["accuracy", "margin"]
    assert rows[0][2] == "0.250"


def test_the_command_knows_it(tmp_path: Path) -> None:
    CORESET.save(tmp_path / "coreset")
    asked = [str(tmp_path / "coreset"), "--data", "digits", "--network", "mlp", "--split", "test"]
    asked += ["--protocol", "nearest_point", "--set", "order=1", "--json", str(tmp_path / "found.json")]
    result = CliRunner().invoke(cli.app, ["evaluate", *asked], catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["metrics"]["accuracy"]["mean"] == accuracy(DATA.test, 1.0)
    assert "'nearest_point'" in result.output


def test_the_skeleton_of_the_page_is_the_same(toy: type[Any], tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "add-a-protocol.md").read_text()
    (tmp_path / "page.py").write_text(page.split("```python\n")[1].split("```")[0])
    wanted = evaluate(CORESET, MODEL, DATA, protocol=toy(), split="test", key=KEY)
    del PROTOCOLS["nearest_point"]
    skeleton = runpy.run_path(str(tmp_path / "page.py"))["NearestPoint"]
    found = evaluate(CORESET, MODEL, DATA, protocol="nearest_point", split="test", key=KEY)
    assert PROTOCOLS["nearest_point"] is skeleton
    PROTOCOLS["nearest_point"] = toy
    assert found.metrics == wanted.metrics
    assert found.notes == wanted.notes


def test_two_protocols_of_one_name_are_refused(toy: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"there is a protocol 'nearest_point' already, .*NearestPoint"):

        class Other(Protocol):
            name: ClassVar[str] = "nearest_point"

    assert PROTOCOLS["nearest_point"] is toy
