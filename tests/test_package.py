"""The package as users get it: what the wheel holds, what importing it costs, and what it is called."""

import ast
import graphlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import pseudocoreset

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ("LICENSE", "README.md", "benchmarks/coresets", "inference", "models", "pseudocoreset", "pyproject.toml")
SUBPACKAGES = ("cli", "data", "diagnostics", "evaluation", "inference", "models", "objectives", "proxies", "sbc")
HEAVY = ("arviz_plots", "matplotlib", "sklearn", "tensorflow", "tensorflow_datasets")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in the wheel that is built from the sdist of a copy of the source tree."""
    copy = tmp_path_factory.mktemp("source")
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy / name)
    subprocess.run([sys.executable, "-m", "build", "--no-isolation"], cwd=copy, check=True, capture_output=True)
    (built,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def test_wheel_installs_one_name(wheel: set[str]) -> None:
    version = pseudocoreset.__version__
    assert {name.split("/")[0] for name in wheel} == {"pseudocoreset", f"pseudocoreset-{version}.dist-info"}


def test_wheel_holds_every_file_of_the_package(wheel: set[str]) -> None:
    source = set()
    for folder, _, names in os.walk(ROOT / "pseudocoreset", followlinks=True):
        if not folder.endswith("__pycache__"):
            source |= {(Path(folder) / name).relative_to(ROOT).as_posix() for name in names}
    expected = {
        "pseudocoreset/py.typed",
        "pseudocoreset/models/__init__.py",
        "pseudocoreset/inference/__init__.py",
    }
    assert expected <= source
    assert {name for name in wheel if name.startswith("pseudocoreset/")} == source


def test_linked_folders_are_relative_links() -> None:
    for name in ("models", "inference", "benchmarks/coresets"):
        link = ROOT / "pseudocoreset" / Path(name).name
        assert link.readlink() == Path("..") / name


def test_import_touches_no_device() -> None:
    # With this setting whatever asks JAX for a device or makes an array fails, as the first line shows.
    nowhere = {"JAX_PLATFORMS": "no_such_platform"}
    assert "no_such_platform" in run("import jax; jax.numpy.zeros(1)", **nowhere).stderr
    modules = ["pseudocoreset", *(f"pseudocoreset.{name}" for name in SUBPACKAGES)]
    imported = run(f"import {', '.join(modules)}", **nowhere)
    assert imported.returncode == 0, imported.stderr


def test_import_is_light() -> None:
    modules = ["pseudocoreset", *(f"pseudocoreset.{name}" for name in SUBPACKAGES)]
    imported = run(f"import sys, {', '.join(modules)}; print(*sys.modules)")
    assert imported.returncode == 0, imported.stderr
    loaded = imported.stdout.split()
    assert set(modules) <= set(loaded)
    assert not [name for name in HEAVY if name in loaded]


def test_public_names() -> None:
    assert sorted(pseudocoreset.__all__) == [
        "Dataset",
        "Evaluation",
        "Experts",
        "FitResult",
        "MemoryEstimate",
        "Pseudocoreset",
        "__version__",
        "choose_mass",
        "compare_posteriors",
        "coreset_names",
        "estimate_memory",
        "evaluate",
        "fit",
        "fit_bacon",
        "fit_bpc_fkl",
        "fit_bpc_rkl",
        "fit_bpc_w",
        "fit_curvature",
        "fit_distribution_matching",
        "fit_fbpc",
        "fit_giga",
        "fit_gradient_matching",
        "fit_herding",
        "fit_k_centres",
        "fit_random",
        "fit_sparse_vi",
        "fit_trajectory_matching",
        "load_coreset",
        "load_dataset",
        "sample",
        "train_experts",
    ]
    for name in pseudocoreset.__all__:
        assert getattr(pseudocoreset, name) is not None
        assert name in dir(pseudocoreset)
    with pytest.raises(AttributeError, match="no_such_name"):
        pseudocoreset.no_such_name  # noqa: B018


def test_names_of_version_0_1_are_what_took_their_place() -> None:
    from pseudocoreset import augment, device, inference, objectives
    from pseudocoreset.data.augmentation import resolve_augmentation
    from pseudocoreset.data.on_device import DeviceData

    assert inference.Minibatch is objectives.CoresetArrays is objectives.Rows is inference.Rows
    assert (device.DeviceData, augment.resolve_augmentation) == (DeviceData, resolve_augmentation)


def test_one_version_everywhere() -> None:
    version = pseudocoreset.__version__
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == version
    assert importlib.metadata.version("pseudocoreset") == version
    assert re.findall(r"(?m)^version: (.+)$", (ROOT / "CITATION.cff").read_text()) == [version]
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_pin_every_dependency() -> None:
    canonical = re.compile(r"[-_.]+")
    pinned = {
        canonical.sub("-", line.split("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    named = {canonical.sub("-", re.match(r"[\w.-]+", line).group()).lower() for line in required}
    assert named - {project["name"]} <= pinned


def test_every_required_package_has_a_lower_bound_that_make_oldest_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    printed = subprocess.check_output([sys.executable, ROOT / ".ci" / "oldest.py"], text=True)
    tested = {line.partition("==")[0] for line in printed.splitlines()}
    extras = [project["optional-dependencies"][name] for name in ("digits", "equinox", "stream")]
    names = {re.match(r"[\w.-]+", requirement)[0] for requirement in sum(extras, project["dependencies"])}
    assert names - tested == {"matplotlib"}  # which has an upper bound alone


@pytest.mark.parametrize(
    ("module", "call", "line"),
    [
        ("sklearn", "load_dataset('digits')", "pip install 'pseudocoreset[digits]'"),
        ("grain", "load_dataset('mnist', stream=True)", "pip install 'pseudocoreset[stream]'"),
    ],
)
def test_a_missing_extra_is_answered_with_the_line_that_installs_it(module: str, call: str, line: str) -> None:
    hidden = (
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *rest: None if name == {module!r} else find(name, *rest)\n"
        f"from pseudocoreset import load_dataset\n{call}"
    )
    said = run(hidden).stderr.splitlines()[-1]
    assert said == f"ModuleNotFoundError: {call} needs {module}, which is not installed: {line}"


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, in functions too, but for types alone."""
    found: set[str] = set()

    def look(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        for child in ast.iter_child_nodes(node):
            look(child)

    look(ast.parse(path.read_text()))
    return found


def test_no_module_and_no_room_imports_in_a_circle() -> None:
    package = ROOT / "pseudocoreset"
    files = [Path(folder) / name for folder, _, names in os.walk(package, followlinks=True) for name in names]
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
        if path.suffix == ".py"
    }

    def home(name: str) -> str | None:
        return name if name in modules else home(name.rpartition(".")[0]) if "." in name else None

    modules_graph: dict[str, set[str]] = {}
    rooms_graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        targets = {home(target) for target in imports_of(path)} - {None, name, "pseudocoreset"}
        modules_graph[name] = targets
        room = name.split(".")[1:2]
        if room:
            rooms_graph.setdefault(room[0], set()).update({target.split(".")[1] for target in targets} - {room[0]})
    for graph in (modules_graph, rooms_graph):
        tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
