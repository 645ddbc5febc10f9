"""Runs that keep their draws in a directory: the same bits as in memory, however often they were stopped."""

import errno
import json
import logging
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open

from pseudocoreset.compute.limits import limited
from pseudocoreset.files.checkpoints import Checkpointer
from pseudocoreset.files.storage import CorruptFileError, map_arrays, read_arrays, seal, write_arrays
from pseudocoreset.inference import SGLD, Posterior, sample
from pseudocoreset.inference.engine import running

SETTINGS = {
    "sghmc": {"kernel": "sghmc", "num_warmup": 20, "num_samples": 40, "thinning": 2, "step_size": 0.1},
    "hmc": {"kernel": "hmc", "num_warmup": 30, "num_samples": 40},
}


class Stopped(BaseException):
    """Raised where a process could be killed."""


def run(regression, name: str, **changes) -> Posterior:
    settings = {**SETTINGS[name], "key": jax.random.key(3), "num_chains": 2, "progress": False, **changes}
    data = (regression.x, regression.y)
    return sample(regression.model, data, predict_on=(regression.x[:5], regression.y[:5]), **settings)


def arrays_of(posterior: Posterior) -> dict[str, np.ndarray]:
    groups = {"draws": posterior.draws, "stats": posterior.sample_stats, "unconstrained": posterior.unconstrained}
    arrays = {f"{group}/{name}": leaf for group, leaves in groups.items() for name, leaf in leaves.items()}
    return {**arrays, "f": posterior.function_values, "log_likelihood": posterior.log_likelihood}


def assert_same(posterior: Posterior, other: Posterior) -> None:
    arrays, others = arrays_of(posterior), arrays_of(other)
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


@pytest.fixture(scope="module", params=list(SETTINGS))
def in_memory(request, regression) -> tuple[str, Posterior]:
    return request.param, run(regression, request.param)


def stop_at(monkeypatch: pytest.MonkeyPatch, count: int, *, is_written: bool) -> None:
    """Raise at the ``count``-th checkpoint, before or after it is written."""
    save, calls = Checkpointer.save, []

    def stopping(self, *args, **kwargs):
        calls.append(1)
        if is_written:
            save(self, *args, **kwargs)
        if len(calls) == count:
            raise Stopped
        if not is_written:
            save(self, *args, **kwargs)

    monkeypatch.setattr(Checkpointer, "save", stopping)


def run_until(regression, name: str, directory: Path, monkeypatch, count: int, *, is_written: bool = True) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, count, is_written=is_written)
        with pytest.raises(Stopped):
            run(regression, name, directory=directory)


def test_the_draws_are_those_in_memory_mapped_from_disk(in_memory, regression, tmp_path: Path) -> None:
    name, posterior = in_memory
    on_disk = run(regression, name, directory=tmp_path / "run")
    assert_same(on_disk, posterior)
    assert isinstance(on_disk.function_values, np.memmap)
    assert not on_disk.function_values.flags.writeable
    assert sorted(os.listdir(tmp_path / "run")) == ["manifest.json", "posterior.json", "posterior.safetensors"]
    assert_same(Posterior.load(tmp_path / "run"), posterior)
    np.testing.assert_array_equal(on_disk.predict_on.raw, posterior.predict_on.raw)
    with safe_open(tmp_path / "run" / "posterior.safetensors", "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("function_values"), posterior.function_values)
    assert set(on_disk.metadata) == set(posterior.metadata)


@pytest.mark.parametrize("is_written", [True, False], ids=["after", "before"])
def test_a_stopped_run_goes_on_to_the_same_bits(
    in_memory, regression, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    name, posterior = in_memory
    for count in (1, 3, 12):  # while warming up (hmc: after it), early, later
        run_until(regression, name, tmp_path / "run", monkeypatch, count, is_written=is_written)
    resumed = run(regression, name, directory=tmp_path / "run")
    assert_same(resumed, posterior)
    assert resumed.metadata["seconds"]["total"] >= resumed.metadata["seconds"]["sampling"]


def test_a_run_stopped_after_its_last_draw_is_completed(in_memory, regression, tmp_path: Path, monkeypatch) -> None:
    name, posterior = in_memory
    num_checkpoints = 20 + (20 if name == "sghmc" else 1)
    run_until(regression, name, tmp_path / "run", monkeypatch, num_checkpoints)
    assert_same(run(regression, name, directory=tmp_path / "run"), posterior)


def test_draws_after_a_damaged_checkpoint_are_made_again(regression, tmp_path: Path, monkeypatch) -> None:
    run_until(regression, "sghmc", tmp_path / "run", monkeypatch, 30)
    newest = sorted((tmp_path / "run" / "checkpoint").glob("step-*"))[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert_same(run(regression, "sghmc", directory=tmp_path / "run"), run(regression, "sghmc"))


def test_a_finished_run_is_read(regression, tmp_path: Path, monkeypatch) -> None:
    first = run(regression, "sghmc", directory=tmp_path / "run")
    monkeypatch.setattr("pseudocoreset.inference.engine.running.run_block", lambda *_: pytest.fail("sampled again"))
    assert_same(run(regression, "sghmc", directory=tmp_path / "run"), first)
    with pytest.raises(ValueError, match=r"another run.*num_samples: saved 40, now 41"):
        run(regression, "sghmc", directory=tmp_path / "run", num_samples=41)


def test_a_block_is_written_while_the_next_is_computed(regression, tmp_path: Path, monkeypatch) -> None:
    """What the host does with draws does not keep the device waiting."""
    events, run_block, save = [], running.run_block, Checkpointer.save

    def begun(*args):
        events.append(f"begin {args[8]}")  # the last step or draw of the block
        return run_block(*args)

    def saved(self, done, *args, **kwargs):
        events.append(f"save {done}")
        save(self, done, *args, **kwargs)

    monkeypatch.setattr(running, "run_block", begun)
    monkeypatch.setattr(Checkpointer, "save", saved)
    run(regression, "hmc", directory=tmp_path / "run")
    assert events[:5] == ["save 30", "begin 2", "begin 4", "save 32", "begin 6"]
    assert events[-3:] == ["begin 40", "save 68", "save 70"]


def test_another_run_is_not_gone_on_with(regression, tmp_path: Path, monkeypatch) -> None:
    run_until(regression, "sghmc", tmp_path / "run", monkeypatch, 2)
    with pytest.raises(ValueError, match=r"another run.*temperature: saved 1.0, now 0.5"):
        run(regression, "sghmc", directory=tmp_path / "run", temperature=0.5)


def test_directories_that_hold_something_else_are_refused(regression, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"directory: .* holds something else \(notes.txt\)"):
        run(regression, "sghmc", directory=tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]
    run(regression, "sghmc").save(tmp_path / "saved")
    with pytest.raises(ValueError, match="holds a posterior that was saved there"):
        run(regression, "sghmc", directory=tmp_path / "saved")


def test_one_process_a_directory(regression, tmp_path: Path) -> None:
    with Checkpointer(tmp_path / "run" / "checkpoint", {}), pytest.raises(BlockingIOError, match="another process"):
        run(regression, "sghmc", directory=tmp_path / "run")


def test_a_full_disk_is_an_error_and_the_run_can_go_on(regression, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="GiB free"):
            run(regression, "sghmc", directory=tmp_path / "run")
    assert_same(run(regression, "sghmc", directory=tmp_path / "run"), run(regression, "sghmc"))


def test_a_directory_lifts_the_limit_of_memory(regression, tmp_path: Path) -> None:
    with limited(kept_bytes=1000):
        with pytest.raises(ValueError, match="or give directory"):
            run(regression, "sghmc")
        assert run(regression, "sghmc", directory=tmp_path / "run").num_draws == 40


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_keys_of_other_implementations_go_on_to_the_same_bits(regression, tmp_path: Path, monkeypatch, implementation):
    settings = {"kernel": "sghmc", "num_warmup": 4, "num_samples": 6, "thinning": 1}
    key = jax.random.key(3, impl=implementation)
    whole = run(regression, "sghmc", key=key, **settings)
    with monkeypatch.context() as patch:
        stop_at(patch, 7, is_written=True)
        with pytest.raises(Stopped):
            run(regression, "sghmc", key=key, directory=tmp_path / "run", **settings)
    other = jax.random.wrap_key_data(
        jax.random.key_data(key), impl={"rbg": "unsafe_rbg", "unsafe_rbg": "rbg"}[implementation]
    )
    with pytest.raises(ValueError, match=r"another run.*key: saved .*implementation"):
        run(regression, "sghmc", key=other, directory=tmp_path / "run", **settings)
    assert_same(run(regression, "sghmc", key=key, directory=tmp_path / "run", **settings), whole)


def test_a_run_goes_on_in_the_precision_in_which_it_was_begun(regression, tmp_path: Path, monkeypatch) -> None:
    settings = {"kernel": "sghmc", "num_warmup": 4, "num_samples": 6, "thinning": 1}
    with monkeypatch.context() as patch:
        stop_at(patch, 7, is_written=True)
        with pytest.raises(Stopped):
            run(regression, "sghmc", directory=tmp_path / "run", **settings)
    with jax.enable_x64(True), pytest.raises(ValueError, match="jax_enable_x64=False; now it is True"):
        run(regression, "sghmc", directory=tmp_path / "run", **settings)
    run(regression, "sghmc", directory=tmp_path / "run", **settings)
    with jax.enable_x64(True), pytest.raises(ValueError, match="enable_x64: saved False, now True"):
        run(regression, "sghmc", directory=tmp_path / "run", **settings)


def strip(folder: Path, record_name: str, *, of_run: bool) -> None:
    """Make a record one of a version that wrote neither precision nor checksums of draws, under a renewed manifest."""
    record = json.loads((folder / record_name).read_text())
    del (record["run"] if of_run else record)["enable_x64"]
    (folder / record_name).write_text(json.dumps(record))
    if not of_run:
        arrays = read_arrays(folder / "state.safetensors")
        kept = {name: array for name, array in arrays.items() if name not in ("extra/drawn", "extra/digests")}
        write_arrays(folder / "state.safetensors", kept)
    names = [path.name for path in folder.iterdir() if path.name != "manifest.json"]
    seal(folder, names)


def test_a_finished_run_of_a_version_before_precisions_is_read(in_memory, regression, tmp_path: Path) -> None:
    name, posterior = in_memory
    run(regression, name, directory=tmp_path / "run")
    strip(tmp_path / "run", "posterior.json", of_run=True)
    assert_same(run(regression, name, directory=tmp_path / "run"), posterior)
    with pytest.raises(ValueError, match=r"another run.*num_samples: saved 40, now 41"):
        run(regression, name, directory=tmp_path / "run", num_samples=41)


def test_a_stopped_run_of_a_version_before_checksums_goes_on(
    in_memory, regression, tmp_path: Path, monkeypatch, caplog
) -> None:
    """Twice: checksums then begin where it was taken up, and damage from there on is found."""
    name, posterior = in_memory
    run_until(regression, name, tmp_path / "run", monkeypatch, {"sghmc": 28, "hmc": 9}[name])
    for folder in (tmp_path / "run" / "checkpoint").glob("step-*"):
        strip(folder, "run.json", of_run=False)
    with caplog.at_level(logging.WARNING):
        run_until(regression, name, tmp_path / "run", monkeypatch, 4)
    assert "draws 0 to 16 have no checksums" in caplog.text
    damaged = tmp_path / "damaged"
    shutil.copytree(tmp_path / "run", damaged)
    assert_same(run(regression, name, directory=tmp_path / "run"), posterior)
    draws = map_arrays(damaged / "posterior.safetensors", writable=True)["draws/b"]
    draws[0, 18] += 1
    draws.flush()
    with pytest.raises(CorruptFileError, match="from draw 18 on"):
        run(regression, name, directory=damaged)


def test_a_stopped_run_goes_on_without_statistics_that_its_version_did_not_make(
    regression, tmp_path: Path, monkeypatch
) -> None:
    """As SGLD did before its configurational temperature."""
    settings = {"kernel": "sgld", "step_size": 1e-3}
    whole, step = run(regression, "sghmc", **settings), SGLD.step

    def before(*arguments):
        state, stats = step(*arguments)
        return state, {"step_size": stats["step_size"]}

    with monkeypatch.context() as patch:
        patch.setattr(SGLD, "step", before)
        stop_at(patch, 30, is_written=True)
        with pytest.raises(Stopped):
            run(regression.uncompiled(), "sghmc", directory=tmp_path / "run", **settings)
    resumed = run(regression, "sghmc", directory=tmp_path / "run", **settings)
    assert set(resumed.sample_stats) == {"lp", "step_size"}
    np.testing.assert_array_equal(resumed.draws["b"], whole.draws["b"])
