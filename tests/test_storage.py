"""Files: what is written is read back as it was, shapes of scalars included; checkpoints restore whole states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.checkpoint import Checkpointer
from pseudocoreset.storage import CorruptFileError, atomic_directory, read_arrays, verify, write_arrays


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
