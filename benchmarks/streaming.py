"""Training images read from disk against the same in memory: seconds and peak memory, on Tiny-ImageNet.

    python benchmarks/streaming.py --data-dir DIR --out benchmarks/results/streaming.json [--images 100000]

``--data-dir`` is a tensorflow-datasets folder with tiny_imagenet prepared. Each cell is a process of its own, so that
its peak memory is its own: an epoch of one expert of a small ConvNet, after a first that compiles and warms the
disk's cache, and SGHMC of two chains. Cells of both kinds alternate. The results of both are compared bit by bit.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
from machine import describe_machine

from pseudocoreset import Dataset, load_dataset, train_experts
from pseudocoreset.inference import sample
from pseudocoreset.models import ConvNet, Model, bnn

BATCH = 128


def loaded(data_dir: str, images: int, stream: bool) -> Dataset:
    """Some of the training images, evenly from all classes, and few to predict on."""
    data = load_dataset("tiny_imagenet", data_dir=data_dir, stream=stream)
    assert data.test is not None
    chosen = np.linspace(0, data.train.num_data - 1, images).astype(int)
    train = data.train if images == data.train.num_data else data.train.subset(chosen)
    return dataclasses.replace(data, train=train, test=data.test.head(100))


def digest(arrays: dict[str, np.ndarray]) -> str:
    content = b"".join(np.ascontiguousarray(arrays[name]).tobytes() for name in sorted(arrays))
    return hashlib.sha256(content).hexdigest()[:16]


def expert(model: Model, data: Dataset) -> tuple[float, str, int]:
    def train() -> Any:
        return train_experts(
            model, data, num_experts=1, num_epochs=1, batch_size=BATCH, augment=None, key=jax.random.key(0),
            progress=False,
        )  # fmt: skip

    train()
    began = time.perf_counter()
    trained = train()
    return time.perf_counter() - began, digest(trained.snapshot(0, 1)), data.train.num_data // BATCH * BATCH


def chains(model: Model, data: Dataset) -> tuple[float, str, int]:
    length = dict(num_chains=2, num_warmup=20, num_samples=4, thinning=20, batch_size=BATCH)

    def draw() -> Any:
        return sample(model, data, kernel="sghmc", keep="weights", key=jax.random.key(1), progress=False, **length)

    draw()
    began = time.perf_counter()
    drawn = draw()
    return time.perf_counter() - began, digest(drawn.unconstrained), 2 * (20 + 4 * 21) * BATCH


def reading(model: Model, data: Dataset) -> tuple[float, str, int]:
    """The images alone, in the order of an epoch."""
    order = np.random.default_rng(0).permutation(data.train.num_data)
    began = time.perf_counter()
    count = 0
    if data.train.is_stored:
        for images in data.train.raw.stream(np.array_split(order, max(1, len(order) // 2000))):  # type: ignore[union-attr]
            count += len(images)
    return time.perf_counter() - began, "", count


WORK = {"expert": expert, "chains": chains, "reading": reading}


def run_cell(work: str, stream: bool, args: argparse.Namespace) -> dict[str, Any]:
    data = loaded(args.data_dir, args.images, stream)
    model = bnn(ConvNet(depth=4, width=args.width), data)
    seconds, results, images = WORK[work](model, data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"work": work, "stream": stream, "seconds": seconds, "images": images, "peak_bytes": peak, "digest": results}


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What is there of: images read a second; seconds, peak memory and results of disk against memory."""
    reading = [r for r in records if r["work"] == "reading"]
    summary: dict[str, Any] = {"images_read_per_second": reading[0]["images"] / reading[0]["seconds"]}
    for work in ("expert", "chains"):
        memory, stored = ([r for r in records if r["work"] == work and r["stream"] == place] for place in (False, True))
        if memory and stored:
            seconds = [float(np.median([r["seconds"] for r in rows])) for rows in (stored, memory)]
            summary[work] = {
                "seconds_stored_over_memory": seconds[0] / seconds[1],
                "peak_bytes": {
                    "memory": max(r["peak_bytes"] for r in memory),
                    "stored": max(r["peak_bytes"] for r in stored),
                },
                "same_bits": len({r["digest"] for r in memory + stored}) == 1,
            }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--cell", nargs=2, help="for the processes that this one starts")
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(run_cell(args.cell[0], args.cell[1] == "stored", args)))
        return
    settings = {"images": args.images, "width": args.width, "batch_size": BATCH}
    cells = [("reading", "stored", 0)]
    for repetition in range(args.repetitions):
        cells += [(work, place, repetition) for work in ("expert", "chains") for place in ("memory", "stored")]
    records: list[dict[str, Any]] = []
    for work, place, repetition in cells:
        command = [sys.executable, __file__, *sys.argv[1:], "--cell", work, place]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        records.append(json.loads(answer.splitlines()[-1]) | {"repetition": repetition})
        print(records[-1], flush=True)
        if args.out:
            content = {"settings": settings, "summary": summarise(records), "cells": records}
            args.out.write_text(json.dumps(content | {"machine": describe_machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
