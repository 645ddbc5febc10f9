"""Files: what is written is read back as it was, shapes of scalars included; checkpoints restore whole states."""

import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.files.checkpoints import Checkpointer
from pseudocoreset.files.storage import CorruptFileError, atomic_directory, read_arrays, verify, write_arrays
from pseudocoreset.validation import key_record


def test_arrays_come_back_with_shape_and_dtype(tmp_path):
    arrays = {
        "scalar": np.float32(3.0),
        "empty": np.zeros((0, 3), np.int32),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "bytes": np.arange(4, dtype=np.uint8),
    }
    write_arrays(tmp_path / "a.safetensors", arrays)
    read = read_arrays(tmp_path / "a.safetensors")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].shape == np.shape(array)
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "result"

    def interrupted():
        with atomic_directory(target) as folder:
            (folder / "one.txt").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    for content in ("first", "second"):
        with atomic_directory(target) as folder:
            (folder / "one.txt").write_text(content)
    assert (verify(target) / "one.txt").read_text() == "second"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "nothing")
    (target / "one.txt").write_text("other!")
    with pytest.raises(CorruptFileError, match=r"one\.txt is damaged"):
        verify(target)


def test_a_state_with_keys_and_scalars_is_restored_to_the_bit(tmp_path):
    state = {"key": jax.random.key(3), "step": jnp.asarray(7), "x": jnp.linspace(0, 1, 5), "nothing": ()}
    with Checkpointer(tmp_path, {"settings": [1, 2]}) as checkpoints:
        assert checkpoints.restore(state) is None
        for step in (1, 2, 3):
            checkpoints.save(step, {**state, "step": jnp.asarray(step)}, {"loss": np.arange(step)})
        assert len(list(tmp_path.glob("step-*"))) == 2
    template = jax.tree.map(jnp.zeros_like, {k: v for k, v in state.items() if k != "key"}) | {"key": jax.random.key(0)}
    with Checkpointer(tmp_path, {"settings": [1, 2]}) as checkpoints:
        step, restored, extra = checkpoints.restore(template)
    assert (step, int(restored["step"]), extra["loss"].tolist()) == (3, 3, [0, 1, 2])
    np.testing.assert_array_equal(restored["x"], state["x"])
    assert jax.random.uniform(restored["key"]) == jax.random.uniform(state["key"])
    with Checkpointer(tmp_path, {"settings": [1, 3]}) as checkpoints, pytest.raises(ValueError, match="settings"):
        checkpoints.restore(template)
    with Checkpointer(tmp_path, {"settings": [1, 2]}) as checkpoints, pytest.raises(ValueError, match="other shapes"):
        checkpoints.restore({**template, "x": jnp.zeros(6)})


OUTLIVED = """
import os, pathlib, sys, time
import pseudocoreset.files.checkpoints as checkpoint
with checkpoint.Checkpointer(sys.argv[1], {}) as checkpoints:
    child = os.fork()
    if child == 0:
        checkpoints.__exit__()  # a child gives up nothing
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


def test_a_child_that_outlives_its_parent_does_not_keep_the_directory(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", OUTLIVED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        try:
            with pytest.raises(BlockingIOError, match="another process"):
                Checkpointer(tmp_path, {})
            parent.kill()
            parent.wait()
            os.kill(child, 0)  # it lives
            with Checkpointer(tmp_path, {}), pytest.raises(BlockingIOError, match="another run of this one"):
                Checkpointer(tmp_path, {})
            with Checkpointer(tmp_path, {}):  # and it is free again
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_place_of_the_lock_may_hold_anything(tmp_path):
    os.mkfifo(tmp_path / "lock")
    began = time.perf_counter()
    with pytest.raises(CorruptFileError, match="lock must be a file; it is a pipe"):
        Checkpointer(tmp_path, {})
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_every_implementation_are_restored(tmp_path, implementation):
    key = jax.random.key(3, impl=implementation)
    with Checkpointer(tmp_path, {}) as checkpoints:
        checkpoints.save(1, {"key": key})
        _, restored, _ = checkpoints.restore({"key": jax.random.key(0, impl=implementation)})
    assert jax.random.key_impl(restored["key"]) == implementation
    np.testing.assert_array_equal(jax.random.normal(restored["key"], 3), jax.random.normal(key, 3))


def test_keys_are_told_apart_by_their_implementation():
    numbers = jax.random.key_data(jax.random.key(3, impl="rbg"))
    keys = [jax.random.wrap_key_data(numbers, impl=name) for name in ("rbg", "unsafe_rbg")]
    assert key_record(keys[0]) != key_record(keys[1])
    assert key_record(jax.random.key(3)) == [0, 3]


def test_a_run_does_not_change_its_precision(tmp_path):
    with Checkpointer(tmp_path, {}) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(3)})
        with jax.enable_x64(True), pytest.raises(ValueError, match=r"jax_enable_x64=False; now it is True"):
            checkpoints.restore({"x": jnp.ones(3)})
        with pytest.raises(ValueError, match="arrays of float32 where this run has int32"):
            checkpoints.restore({"x": jnp.ones(3, int)})
