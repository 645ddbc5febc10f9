"""Expert trajectories: equal to plain SGD, the same on disk and in memory, resumed to the same bits."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset import Dataset, Experts, train_experts
from pseudocoreset.files.storage import CorruptFileError, seal
from pseudocoreset.models import MLP, bnn, logistic_regression

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 5)).astype(np.float32)
Y = (X @ RNG.normal(size=(5, 3))).argmax(1).astype(np.int32)
DATA = Dataset.from_arrays(X, Y)
MODEL = bnn(MLP((6,)), DATA)  # the same object, for which a training is compiled once
SETTINGS = dict(num_experts=3, num_epochs=4, learning_rate=0.1, batch_size=16, experts_per_group=2, progress=False)


def train(**changes):
    return train_experts(MODEL, DATA, key=jax.random.key(0), **{**SETTINGS, **changes})


def assert_same(one, other):
    assert (one.num_experts, one.num_epochs) == (other.num_experts, other.num_epochs)
    for expert in range(one.num_experts):
        for epoch in range(one.num_epochs + 1):
            left, right = one.snapshot(expert, epoch), other.snapshot(expert, epoch)
            assert left.keys() == right.keys()
            for name in left:
                np.testing.assert_array_equal(left[name], right[name])


@pytest.fixture(scope="module")
def in_memory():
    return train()


def test_the_loss_falls_and_experts_differ(in_memory):
    losses = [-float(MODEL.log_likelihood(in_memory.snapshot(0, e), X, Y).mean()) for e in range(5)]
    assert losses[-1] < 0.9 * losses[0]
    assert not np.array_equal(
        in_memory.snapshot(0, 4)["network/head.bias"], in_memory.snapshot(1, 4)["network/head.bias"]
    )


def test_a_full_batch_epoch_is_one_gradient_step():
    """Recomputed by hand: softmax regression, momentum and weight decay as SGD defines them."""
    model = logistic_regression(DATA)
    experts = train_experts(
        model, DATA, num_experts=1, num_epochs=3, key=jax.random.key(1), learning_rate=0.2, momentum=0.5,
        weight_decay=0.1, batch_size=48, augment=None, progress=False,
    )  # fmt: skip
    params = experts.snapshot(0, 0)
    weights, bias = params["coefficients"].astype(float), params["intercept"].astype(float)
    velocity = [np.zeros_like(weights), np.zeros_like(bias)]
    for epoch in range(1, 4):
        logits = X @ weights + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        residual = (p / p.sum(1, keepdims=True) - np.eye(3)[Y]) / 48
        gradients = [X.T @ residual + 0.1 * weights, residual.sum(0) + 0.1 * bias]
        velocity = [0.5 * v + g for v, g in zip(velocity, gradients, strict=True)]
        weights, bias = weights - 0.2 * velocity[0], bias - 0.2 * velocity[1]
        np.testing.assert_allclose(experts.snapshot(0, epoch)["coefficients"], weights, atol=1e-5)
        np.testing.assert_allclose(experts.snapshot(0, epoch)["intercept"], bias, atol=1e-5)


def test_disk_equals_memory_and_is_read_lazily(in_memory, tmp_path):
    on_disk = train(directory=tmp_path)
    assert on_disk.memory is None
    assert_same(in_memory, on_disk)
    assert_same(in_memory, Experts.load(tmp_path))
    stacked = on_disk.stack([(0, 1), (2, 4)])
    np.testing.assert_array_equal(stacked["network/head.bias"][1], in_memory.snapshot(2, 4)["network/head.bias"])


def test_a_finished_run_is_returned_and_another_refused(tmp_path):
    first = train(directory=tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    assert_same(first, train(directory=tmp_path))
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    with pytest.raises(ValueError, match=r"trained otherwise.*learning_rate"):
        train(directory=tmp_path, learning_rate=0.2)


@pytest.mark.parametrize(("group", "epoch"), [(0, 2), (1, 1)])
def test_a_stopped_run_goes_on_to_the_same_bits(in_memory, tmp_path, group, epoch, monkeypatch):
    """Stopped while the snapshot of an epoch is written: momentum and keys come from the checkpoint."""
    from pseudocoreset.experts import store as module

    whole = train(momentum=0.9, directory=tmp_path / "whole")
    write, calls = module.write_arrays, []

    def failing(path, arrays):
        calls.append(path)
        if f"group-{group:04d}" in str(path) and f"epoch-{epoch:04d}" in str(path):
            raise KeyboardInterrupt
        write(path, arrays)

    monkeypatch.setattr(module, "write_arrays", failing)
    with pytest.raises(KeyboardInterrupt):
        train(momentum=0.9, directory=tmp_path / "stopped")
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="no finished experts"):
        Experts.load(tmp_path / "stopped")
    assert_same(whole, train(momentum=0.9, directory=tmp_path / "stopped"))


def test_a_stopped_run_of_a_version_before_precisions_goes_on(in_memory, tmp_path, monkeypatch):
    """It wrote neither how inputs are made nor the precision."""
    from pseudocoreset.experts import store as module

    write = module.write_arrays

    def failing(path, arrays):
        if "epoch-0003" in str(path):
            raise KeyboardInterrupt
        write(path, arrays)

    monkeypatch.setattr(module, "write_arrays", failing)
    with pytest.raises(KeyboardInterrupt):
        train(directory=tmp_path)
    monkeypatch.undo()
    for record_file in tmp_path.glob("group-0000/state/step-*/run.json"):
        record = json.loads(record_file.read_text())
        del record["enable_x64"]
        assert record["run"].pop("inputs", None) is None
        record_file.write_text(json.dumps(record))
        seal(record_file.parent, [p.name for p in record_file.parent.iterdir() if p.name != "manifest.json"])
    assert_same(in_memory, train(directory=tmp_path))
    with pytest.raises(ValueError, match=r"trained otherwise.*learning_rate"):
        train(directory=tmp_path, learning_rate=0.2)


def test_a_damaged_snapshot_is_named(tmp_path):
    train(directory=tmp_path)
    file = tmp_path / "group-0001" / "epoch-0003" / "snapshots.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CorruptFileError, match=r"group-0001.*epoch-0003"):
        Experts.load(tmp_path)
    shutil.rmtree(file.parent)
    with pytest.raises(FileNotFoundError, match="epoch-0003"):
        Experts.load(tmp_path)


def test_divergence_is_an_error_that_names_the_remedy():
    with pytest.raises(FloatingPointError, match="learning_rate"):
        train(learning_rate=1e30)


def test_a_snapshot_that_is_not_there_is_named(in_memory):
    for choice in ((3, 0), (0, 5), (-1, 0)):
        with pytest.raises(IndexError, match="3 experts and epochs 0 to 4"):
            in_memory.snapshot(*choice)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(num_experts=0), ValueError, "num_experts"),
        (dict(num_epochs=0), ValueError, "num_epochs"),
        (dict(batch_size=49), ValueError, "batch_size=49"),
        (dict(learning_rate=0.0), ValueError, "learning_rate"),
        (dict(momentum=1.0), ValueError, "momentum"),
        (dict(weight_decay=-1.0), ValueError, "weight_decay"),
        (dict(augment="color"), ValueError, "needs images"),
        (dict(augment="sharpen"), ValueError, "needs images|sharpen"),
        (dict(key=jnp.zeros(2, jnp.uint32)), TypeError, "jax.random.key"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        train_experts(MODEL, DATA, **{"key": jax.random.key(0), **SETTINGS, **arguments})
