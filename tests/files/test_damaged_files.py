"""Whatever happens to a saved file, its reader gives what was saved, or says in one way that it cannot.

``mutations`` change one file of a directory at a time: bits, length, JSON values under renewed checksums, or something
else in its place. The readers run here under limits of time and memory. More of them: ``pytest -m slow``.
"""

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset import Experts, Pseudocoreset
from pseudocoreset.data.preprocessing import Preprocessing
from pseudocoreset.files.checkpoints import Checkpointer
from pseudocoreset.files.storage import CorruptFileError, atomic_directory, read_arrays, write_arrays, write_json
from pseudocoreset.inference import Posterior
from pseudocoreset.inference.posterior.draw_files import DrawFiles

RUN = {"num_samples": 6, "settings": [1, 2]}
SECONDS, BYTES = 5, 16 * 2**20


def make_coreset(path: Path) -> None:
    generator = np.random.default_rng(0)
    Pseudocoreset(
        inputs=generator.normal(size=(4, 3)).astype(np.float32),
        targets=np.array([0, 1, 0, 1], np.int32),
        weights=np.ones(4, np.float32),
        preprocessing=Preprocessing(mean=np.ones(3), std=np.ones(3)),
        num_data=100,
        class_names=("a", "b"),
        metadata={"objective": "random", "steps_done": 3, "key": [0, 1], "nested": {"a": [1.5, None, True]}},
    ).save(path)


def a_posterior() -> Posterior:
    generator = np.random.default_rng(0)
    return Posterior(
        draws={"w": generator.normal(size=(2, 6, 3)), "b": generator.normal(size=(2, 6))},
        function_values=None,
        log_likelihood=None,
        sample_stats={"lp": generator.normal(size=(2, 6)), "diverging": np.zeros((2, 6), bool)},
        predict_on=None,
        metadata={
            "model": "m", "kernel": "nuts", "temperature": 1.0, "num_chains": 2, "num_warmup": 3, "num_samples": 6,
            "thinning": 1, "num_data": 9, "total_weight": 9.0, "batch_size": None, "step_size": [0.1, 0.2],
            "key": {"implementation": "threefry2x32", "data": [0, 1]}, "seconds": {"total": 1.0},
        },
        unconstrained={"w": generator.normal(size=(2, 6, 3))},
    )  # fmt: skip


def make_experts(path: Path) -> None:
    for epoch in range(2):
        with atomic_directory(path / "group-0000" / f"epoch-{epoch:04d}") as folder:
            write_arrays(folder / "snapshots.safetensors", {"w": np.full((2, 3), epoch, np.float32)})
    with atomic_directory(path / "experts") as folder:
        metadata = {"sites": {"w": [3]}, "num_experts": 2, "num_epochs": 1, "learning_rate": 0.1}
        write_json(folder / "experts.json", {"schema": 1, "num_epochs": 1, "groups": [2], "metadata": metadata})


STATE = {"key": jax.random.key(3), "x": jnp.linspace(0, 1, 5)}


def make_checkpoints(path: Path) -> None:
    with Checkpointer(path, RUN) as checkpoints:
        checkpoints.save(1, STATE, {"loss": np.zeros(1)})


def read_checkpoints(path: Path) -> dict:
    with Checkpointer(path, RUN) as checkpoints:
        restored = checkpoints.restore(STATE)
    if restored is None:
        raise FileNotFoundError("nothing is there")
    step, state, extra = restored
    return {"step": step, "x": state["x"], "key": jax.random.key_data(state["key"]), **extra}


VALUES = np.random.default_rng(0).normal(size=(2, 6, 3))


def make_run(path: Path) -> None:
    """A run that was stopped after four of six draws."""
    with DrawFiles(path, RUN, None) as files:
        files.create({"draws/w": VALUES})
        for first in (0, 2):
            files.write(first, first + 2, {"draws/w": VALUES[:, first : first + 2]})
            files.save(first + 2, STATE, {"sampling": 1.0})


def read_run(path: Path) -> dict:
    with DrawFiles(path, RUN, None) as files:
        if files.is_finished:
            raise CorruptFileError("finished, which it is not")
        restored = files.restore(STATE)
        if restored is None:
            raise FileNotFoundError("nothing is there")
        drawn = restored[0]
        arrays = files.reopen(drawn, 6)
        files.write(drawn, 6, {"draws/w": VALUES[:, drawn:]})  # it goes on
        return {name: np.array(array) for name, array in arrays.items()}


def content(saved: Pseudocoreset | Posterior | Experts) -> dict:
    if isinstance(saved, Experts):
        return {"arrays": [saved.snapshot(e, t) for e in range(2) for t in range(2)], "metadata": saved.metadata}
    arrays = {name: value for name, value in vars(saved).items() if name not in ("preprocessing", "predict_on")}
    return arrays | ({"scale": saved.preprocessing.arrays()} if isinstance(saved, Pseudocoreset) else {})


KINDS = {
    "coreset": (make_coreset, lambda path: content(Pseudocoreset.load(path))),
    "posterior": (lambda path: a_posterior().save(path), lambda path: content(Posterior.load(path))),
    "mapped": (lambda path: a_posterior().save(path), lambda path: content(Posterior.load(path, memory_map=True))),
    "experts": (make_experts, lambda path: content(Experts.load(path))),
    "checkpoints": (make_checkpoints, read_checkpoints),
    "run": (make_run, read_run),
}
WRONG_VALUES = [
    None, True, -1, 0, 2**70, 1e400, float("nan"), 0.5, "text", "", [], [[[]]], {}, {"a": 1}, [None], ["a"],
]  # fmt: skip


def renew_checksums(file: Path) -> None:
    """Make the manifest right again, as whoever changes a file on purpose would."""
    manifest = file.parent / "manifest.json"
    if file != manifest and manifest.is_file():
        record = json.loads(manifest.read_text())
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        record[file.name] = {"bytes": file.stat().st_size, "sha256": digest}
        manifest.write_text(json.dumps(record))


def places_in(value, path=()) -> list[tuple]:
    """Where in a JSON document there are values."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in places_in(child, (*path, key)))]


def change_json(file: Path, generator: random.Random) -> None:
    document = json.loads(file.read_text())
    place = generator.choice(places_in(document))
    if not place:
        document = generator.choice(WRONG_VALUES)
    else:
        parent = document
        for key in place[:-1]:
            parent = parent[key]
        if generator.random() < 0.3:
            del parent[place[-1]]
        else:
            parent[place[-1]] = generator.choice(WRONG_VALUES)
    file.write_text(json.dumps(document))


def change_header(file: Path, generator: random.Random) -> None:
    """Change the header of a safetensors file, or the length that stands before it."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    if generator.random() < 0.3:
        claimed = generator.choice([0, 2**63, 2**64 - 1, length - 1, length + 1, 2**40, len(data)])
        file.write_bytes(claimed.to_bytes(8, "little") + data[8:])
        return
    scratch = file.with_name("header.json")
    scratch.write_bytes(data[8 : 8 + length])
    change_json(scratch, generator)
    text = scratch.read_bytes()
    scratch.unlink()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def flip_bits(file: Path, generator: random.Random) -> None:
    data = bytearray(file.read_bytes())
    for _ in range(generator.choice([1, 1, 8])):
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    file.write_bytes(data)


def put_in_place(file: Path, generator: random.Random) -> None:
    kind = generator.choice(["nothing", "directory", "pipe", "endless", "full", "nowhere", "empty", "deep", "loop"])
    file.unlink()
    if kind == "directory":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind in ("endless", "full", "nowhere"):
        file.symlink_to({"endless": "/dev/zero", "full": "/dev/full", "nowhere": "no-such-file"}[kind])
    elif kind == "loop":
        file.symlink_to(file.name)
    elif kind == "empty":
        file.touch()
    elif kind == "deep":
        file.write_text('{"a":' * 100_000)


def mutate(root: Path, generator: random.Random) -> tuple[str, bool]:
    """Change one file; what was done, and whether only the right content may be read now."""
    file = generator.choice(sorted(path for path in root.rglob("*") if path.is_file() and path.name != "lock"))
    is_json = file.suffix == ".json"
    kind = generator.choice(["bits", "truncate", "place", "content", "content", "grow"])
    renews = kind == "content" or generator.random() < 0.2
    if kind == "bits":
        flip_bits(file, generator)
    elif kind == "truncate":
        os.truncate(file, generator.randrange(file.stat().st_size))
    elif kind == "grow":
        os.truncate(file, file.stat().st_size + generator.choice([1, 8, 2**34]))
        renews = False  # nobody has the time
    elif kind == "place":
        put_in_place(file, generator)
        renews = False
    elif is_json:
        change_json(file, generator)
    else:
        change_header(file, generator)
    if renews:
        renew_checksums(file)
    # Who writes a manifest for other content has other content.
    return f"{kind} {file.relative_to(root)} renewed={renews}", not (renews or file.name == "manifest.json")


@contextlib.contextmanager
def limited():
    """Fail where it takes seconds, or much memory."""

    def late(*_):
        raise AssertionError("the reader hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(kind: str, tmp_path: Path, seeds: range) -> None:
    make, read = KINDS[kind]
    make(tmp_path / "whole")
    expected = read(tmp_path / "whole")
    refused = 0
    for seed in seeds:
        root = tmp_path / f"{seed}"
        shutil.copytree(tmp_path / "whole", root)
        done, must_be_same = mutate(root, random.Random(f"{kind} {seed}"))
        found, error = None, None
        try:
            with limited():
                found = read(root)
        except BaseException as raised:
            error = raised
        if isinstance(error, ValueError):
            # A newer version, another run: documented words, where the record says so under right checksums.
            documented = ("schema", "another run", "use another directory", "jax_enable_x64")
            is_named = not must_be_same and any(words in str(error) for words in documented)
        else:
            is_named = error is None or isinstance(error, CorruptFileError | FileNotFoundError)
        assert is_named, f"{kind} {seed}: {done} ends in {type(error).__name__}: {error}"
        refused += error is not None
        if found is not None and must_be_same:
            jax.tree.map(np.testing.assert_array_equal, found, expected)
        shutil.rmtree(root)
    assert refused > len(seeds) / 10  # where there is an older checkpoint, it is taken


@pytest.mark.filterwarnings("ignore:.*damaged")
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file_is_refused_or_read_right(kind, tmp_path):
    check(kind, tmp_path, range(80))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_changed_files_are_refused_or_read_right(kind, tmp_path):
    check(kind, tmp_path, range(80, 4000))


def changed(path: Path, file: str, *place, value) -> None:
    document = json.loads((path / file).read_text())
    parent = document
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    (path / file).write_text(json.dumps(document))
    renew_checksums(path / file)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("thinning", -1),
        ("step_size", float("nan")),
        ("step_size", [0.1, 0.0]),
        ("temperature", "cold"),
        ("num_data", 1.5),
    ],
)
def test_metadata_are_checked(tmp_path, name, value):
    a_posterior().save(tmp_path / "p")
    changed(tmp_path / "p", "posterior.json", "metadata", name, value=value)
    with pytest.raises(CorruptFileError, match=rf"metadata: '{name}' must be .*; it is"):
        Posterior.load(tmp_path / "p")


def test_checkpoints_one_directory_deeper_are_not_begun_anew(tmp_path):
    make_checkpoints(tmp_path / "deep" / "run")
    with pytest.raises(ValueError, match=r"one directory deeper, in .*run; give that one"):
        read_checkpoints(tmp_path / "deep")
    make_checkpoints(tmp_path / "flat")
    (step,) = (tmp_path / "flat").glob("step-*")
    step.rename(tmp_path / "moved")
    step.mkdir()
    (tmp_path / "moved").rename(step / step.name)
    with pytest.raises(CorruptFileError, match="no checkpoint in"):
        read_checkpoints(tmp_path / "flat")


def test_a_checkpoint_under_another_number_is_not_taken(tmp_path):
    make_checkpoints(tmp_path)
    (step,) = tmp_path.glob("step-*")
    step.rename(tmp_path / "step-000000007")
    with pytest.raises(CorruptFileError, match="no checkpoint in"):
        read_checkpoints(tmp_path)


def test_draws_of_a_stopped_run_that_were_changed_are_not_gone_on_with(tmp_path):
    make_run(tmp_path)
    file = tmp_path / "posterior.safetensors"
    data = bytearray(file.read_bytes())
    data[-20] ^= 1  # after the fourth draw of the second chain: nothing yet
    file.write_bytes(data)
    assert read_run(tmp_path)
    data[-280] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"damaged: from draw \d on"):
        read_run(tmp_path)


def test_a_finished_run_without_its_manifest_is_not_overwritten(tmp_path):
    a_posterior().save(tmp_path)
    (tmp_path / "manifest.json").unlink()
    before = (tmp_path / "posterior.safetensors").read_bytes()
    with pytest.raises(CorruptFileError, match="neither a manifest"):
        read_run(tmp_path)
    assert (tmp_path / "posterior.safetensors").read_bytes() == before


def test_sizes_are_compared_before_memory_is_claimed(tmp_path):
    file = tmp_path / "a.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptFileError, match="its arrays end at"):
        read_arrays(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
