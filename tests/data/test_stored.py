"""Training images that stay on disk: the same data, experts and chains as in memory."""

import os
import warnings

import jax
import numpy as np
import pytest

from pseudocoreset import Experts, Pseudocoreset, fit_fbpc, fit_random, train_experts
from pseudocoreset.compute.limits import limited
from pseudocoreset.data import load_dataset
from pseudocoreset.data.sources import records
from pseudocoreset.files.storage import CorruptFileError
from pseudocoreset.inference import Posterior, sample
from pseudocoreset.inference.engine import stored as stored_blocks
from pseudocoreset.models import MLP, bnn
from tests.marks import slow_but

KEY = jax.random.key(0)


@pytest.fixture
def pair(cifar10):
    """The same data in memory and on disk."""
    data_dir = cifar10[0]
    return load_dataset("cifar10", data_dir=data_dir), load_dataset("cifar10", data_dir=data_dir, stream=True)


def test_what_is_read_is_what_is_in_memory(pair):
    memory, stored = pair
    assert stored.train.is_stored
    assert not memory.train.is_stored
    np.testing.assert_array_equal(stored.train.y, memory.train.y)
    raw = memory.train.raw
    chosen = np.array([31, 4, 4, 49])
    for index in (slice(3, 20, 4), chosen, raw[:, 0, 0, 0] > 100, 7, -1):
        np.testing.assert_array_equal(stored.train.raw[index], raw[index])
    np.testing.assert_array_equal(np.asarray(stored.train.raw), raw)
    np.testing.assert_array_equal(stored.train.x, memory.train.x)
    assert stored.train.raw.shape == raw.shape
    assert "on disk" in repr(stored)
    with pytest.raises(IndexError):
        stored.train.raw[50]


def test_parts_of_it_stay_on_disk_until_asked_for(pair):
    memory, stored = pair
    for part in (stored.train.subset(np.array([5, 1])), stored.train.head(3)):
        assert part.is_stored
        assert not part.in_memory().is_stored
    np.testing.assert_array_equal(stored.train.subset(np.array([5, 1])).in_memory().raw, memory.train.raw[[5, 1]])
    here, there = (data.split_validation(0.2, KEY) for data in pair)
    assert there.validation.is_stored
    np.testing.assert_array_equal(there.validation.raw[:], here.validation.raw)


def test_a_stream_has_the_parts_in_their_order(pair):
    memory, stored = pair
    parts = [np.array([1, 9, 9]), np.array([40]), np.arange(50)]
    streamed = list(stored.train.raw.stream(parts))
    assert len(streamed) == 3
    for images, part in zip(streamed, parts, strict=True):
        np.testing.assert_array_equal(images, memory.train.raw[part])


def test_the_index_is_kept_and_a_stale_one_is_not_believed(pair, cifar10, monkeypatch):
    (kept,) = cifar10[0].glob("cifar10/*/index_train.npz")
    monkeypatch.setattr(records, "_index", lambda *_: pytest.fail("read again"))
    load_dataset("cifar10", data_dir=cifar10[0], stream=True)
    monkeypatch.undo()
    with np.load(kept) as content:
        np.savez(kept, **{**content, "fingerprint": np.array("of others"), "positions": np.zeros(50, int)})
    again = load_dataset("cifar10", data_dir=cifar10[0], stream=True)
    np.testing.assert_array_equal(again.train.raw[:], pair[0].train.raw)


def test_records_that_are_damaged_are_named_and_a_damaged_index_is_made_again(pair, cifar10):
    raw, data_dir = pair[0].train.raw, cifar10[0]

    def read(stream=True):
        return load_dataset("cifar10", data_dir=data_dir, stream=stream).train.raw[:]

    (index,) = data_dir.glob("cifar10/*/index_train.npz")
    with np.load(index) as kept:
        whole = dict(kept)
    for changes in (
        {"positions": np.zeros(50, int)},
        {"labels": np.full(50, 10, np.int32)},
        {"positions": np.arange(9)},
    ):
        np.savez(index, **{**whole, **changes})
        np.testing.assert_array_equal(read(), raw)
    index.unlink()
    os.mkfifo(index)
    np.testing.assert_array_equal(read(), raw)

    (records_file,) = data_dir.glob("cifar10/*/*-train.array_record*")
    before = records_file.read_bytes()
    (decoded,) = data_dir.glob("cifar10/*/decoded_train.npz")
    decoded.unlink()
    damaged = bytearray(before)
    for place in range(70_000, len(damaged), 1000):
        damaged[place] ^= 1
    records_file.write_bytes(damaged)
    for stream in (True, False):
        with pytest.raises(CorruptFileError, match=r"cifar10.* is damaged .*remove it to prepare it again"):
            read(stream)
    records_file.unlink()
    os.mkfifo(records_file)
    with pytest.raises(CorruptFileError, match="must be a file; it is a pipe"):
        read()
    (info,) = data_dir.glob("cifar10/*/dataset_info.json")
    info.unlink()
    os.mkfifo(info)
    with pytest.raises(CorruptFileError, match=r"dataset_info\.json must be a file; it is a pipe"):
        read()


@pytest.mark.parametrize("images", [15, 45])  # of one step a block, of three
def test_experts_are_those_of_data_in_memory(pair, tmp_path, images):
    memory, stored = pair
    model = bnn(MLP((4,)), memory)
    settings = dict(num_experts=3, experts_per_group=2, num_epochs=2, batch_size=15, augment="flip", key=KEY)
    here = train_experts(model, memory, directory=tmp_path, progress=False, **settings)
    with limited(streamed_bytes=2 * images * 32 * 32 * 3):
        there = train_experts(model, stored, progress=False, **settings)
    for expert in range(3):
        for site, leaf in here.snapshot(expert, 2).items():
            np.testing.assert_allclose(there.snapshot(expert, 2)[site], leaf, rtol=1e-5, atol=1e-6)
    # A directory belongs to the data, wherever they are.
    assert isinstance(train_experts(model, stored, directory=tmp_path, progress=False, **settings), Experts)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ("sghmc", dict(augment="flip")),
        ("sghmc", dict(schedule="cyclical", thinning=3)),
        ("sgld", dict(preconditioner="rmsprop", thinning=2)),
    ],
    ids=["augmented", "cyclical", "preconditioned"],
)
@pytest.mark.parametrize("at_once", slow_but([1, 2], 2))
def test_chains_are_those_of_data_in_memory(pair, kernel, options, at_once):
    model = bnn(MLP((4,)), pair[0])
    length = dict(num_chains=2, num_warmup=5, num_samples=4, batch_size=6, step_size=1e-3)
    with warnings.catch_warnings(), limited(streamed_bytes=at_once * 2 * 6 * 32 * 32 * 3):
        warnings.filterwarnings("ignore", "augment=|the kinetic temperature")
        here, there = (
            sample(model, data, kernel=kernel, keep="weights", key=KEY, progress=False, **length, **options)
            for data in pair
        )
    for site, leaf in here.unconstrained.items():
        assert np.std(leaf) > 0
        np.testing.assert_allclose(there.unconstrained[site], leaf, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(there.sample_stats["lp_estimate"], here.sample_stats["lp_estimate"], rtol=1e-4)
    np.testing.assert_allclose(there.function_values, here.function_values, rtol=1e-3, atol=1e-4)


def test_a_run_on_stored_data_goes_on_in_its_directory(pair, tmp_path, monkeypatch):
    model = bnn(MLP((4,)), pair[0])
    settings = dict(num_chains=1, num_warmup=2, num_samples=4, batch_size=6, step_size=1e-3, key=KEY, progress=False)
    whole = sample(model, pair[1], **settings)
    advance, calls = stored_blocks.run_stored_block, []

    def stopping(plan, *arguments):
        calls.append(plan)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return advance(plan, *arguments)

    monkeypatch.setattr("pseudocoreset.inference.engine.running.run_stored_block", stopping)
    with pytest.raises(KeyboardInterrupt):
        sample(model, pair[1], directory=tmp_path / "run", **settings)
    monkeypatch.undo()
    gone_on = sample(model, pair[1], directory=tmp_path / "run", **settings)
    assert isinstance(gone_on, Posterior)
    np.testing.assert_array_equal(gone_on.function_values, whole.function_values)


def test_coresets_of_real_images_are_read_from_disk(pair):
    memory = pair[0]
    model = bnn(MLP((4,)), memory)
    here, there = (fit_random(model, data, images_per_class=1, key=KEY).coreset for data in pair)
    np.testing.assert_array_equal(here.inputs, there.inputs)
    here, there = (Pseudocoreset.from_data(data, images_per_class=1, key=KEY) for data in pair)
    np.testing.assert_array_equal(here.inputs, there.inputs)


def test_what_needs_all_data_at_once_says_so(pair):
    stored = pair[1]
    model = bnn(MLP((4,)), stored)
    calls = {
        "kernel 'nuts' takes all of them": lambda: sample(model, stored, kernel="nuts", key=KEY),
        "give batch_size": lambda: sample(model, stored, key=KEY),
        "control_variate": lambda: sample(model, stored, batch_size=5, control_variate=True, key=KEY),
        r"train\.subset": lambda: fit_fbpc(model, stored, images_per_class=1, key=KEY),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=f"on disk.*{message}"):
            call()


def test_options_that_need_the_images_are_refused(cifar10):
    for name, settings in (("cifar10", {"zca": True}), ("digits", {})):
        with pytest.raises(ValueError, match="stream=True"):
            load_dataset(name, data_dir=cifar10[0], stream=True, **settings)
