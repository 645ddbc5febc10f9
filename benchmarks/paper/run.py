"""The comparison with the papers: every method, by every protocol, cell by cell.

    python benchmarks/paper/run.py --grid cpu --data-dir DIR --work DIR --results benchmarks/results/paper
        [--only 'digits/*' '*/function_kl/*'] [--minutes 30] [--list]

``--grid cpu`` is scaled down to two cores; ``--grid paper`` has the papers' networks and steps and wants a GPU
(``../GPU.md``). ``--data-dir`` is a tensorflow-datasets folder. ``--work`` keeps experts, coresets and checkpoints,
which cells share. A cell is one coreset given to one network by one protocol, with one seed, and is named
scale/method/images a class/network/protocol/seed, which the patterns of ``--only`` choose by. Each finished cell is
written to the file of its scale under ``--results`` at once, with its settings, machine, key and seconds; a run that
was stopped goes on, in the middle of a fit too, and a cell whose settings have changed since is measured again.
``--minutes`` stops by itself: no cell begins after that, and a fit keeps its checkpoint. One process a scale at a time.
``--list`` prints the cells, what is done and what the others will cost: by the median of those alike that were
measured, else by multiplications counted, right to a factor of a few. ``table.py`` makes the tables.
"""

import argparse
import datetime
import fnmatch
import functools
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np
from cells import GRIDS, METHODS, Cell, Scale, cells, digest, grid, settings
from costs import expert_seconds, fit_seconds, score_seconds
from machine import describe_machine

import pseudocoreset as pc
from pseudocoreset.evaluation import evaluate
from pseudocoreset.models import Model, bnn

TUNING_SEED = 100
SCORES = ("accuracy", "nll", "nll_member", "nll_batchmean", "brier", "ece", "ensemble_accuracy", "ensemble_nll")
CLEAR_EVERY = 30


class OutOfTime(Exception):
    """The minutes are over, in the middle of a fit."""


@dataclass(frozen=True, eq=False)
class Bench:
    """One scale, and where what it shares is kept."""

    scale: Scale
    data_dir: str | None
    work: pathlib.Path
    deadline: float = math.inf

    @functools.cached_property
    def data(self) -> pc.Dataset:
        data = pc.load_dataset(self.scale.data, data_dir=self.data_dir)
        return data if self.scale.num_test is None else replace(data, test=data.test.head(self.scale.num_test))

    @functools.cached_property
    def models(self) -> dict[str, Model]:
        """One model a network for all cells, which then share compilations."""
        return {name: bnn(network, self.data) for name, network in self.scale.networks.items()}

    @functools.cache  # noqa: B019 kept as long as the run, which is meant
    def experts(self, network: str) -> pc.Experts:
        name = digest({"network": self.scale.networks[network], **self.scale.experts})
        return pc.train_experts(
            self.models[network],
            self.data,
            key=jax.random.key(0),
            directory=self.work / "experts" / name,
            progress=False,
            **self.scale.experts,
        )

    def coreset(self, cell: Cell) -> tuple[pc.Pseudocoreset, dict[str, Any]]:
        """The coreset of a cell, and how its fit went; learned where it is not kept."""
        found = settings(self.scale, cell)
        name = digest({key: found[key] for key in ("data", "coreset", "experts") if key in found})
        folder = self.work / "coresets" / f"{cell.method}-{cell.images_per_class}-{cell.seed}-{name}"
        account = folder.with_name(folder.name + ".json")
        if folder.is_dir() and account.is_file():
            return pc.Pseudocoreset.load(folder), json.loads(account.read_text())
        chosen = dict(self.scale.learning[cell.method][cell.images_per_class])
        result = self.fit(cell, chosen, checkpoint_dir=self.work / "checkpoints" / folder.name)
        if result.outcome.name == "STOPPED":
            raise OutOfTime
        history = {
            key: [float(np.mean(values[:10])), float(np.mean(values[-10:]))] for key, values in result.history.items()
        }
        described = {
            "seconds": round(result.seconds, 1),
            "outcome": result.outcome.name,
            "first_and_last_ten": _rounded(history),
        }
        result.coreset.save(folder)
        write(account, described)
        return result.coreset, described

    def fit(self, cell: Cell, chosen: dict[str, Any], checkpoint_dir: pathlib.Path | None) -> pc.FitResult:
        method, size = METHODS[cell.method], cell.images_per_class
        start_key, fit_key, _ = keys(size, cell.seed)
        arguments = {**method.settings, **chosen}
        begin = arguments.pop("start", "real")
        models = [self.models[name] for name in method.networks]
        if not method.learns:
            if cell.method == "herding":
                expert = self.experts(method.networks[0])
                params = expert.snapshot(0, expert.num_epochs)
                model = models[0].bind(self.data.train.raw, self.data.train.y)
                arguments["features"] = lambda x: model.features(params, x)
            return getattr(pc, method.fit)(
                models[0], self.data, images_per_class=size, key=start_key, progress=False, **arguments
            )
        start = pc.Pseudocoreset.from_data(self.data, images_per_class=size, key=start_key)
        if begin == "noise":
            start = replace(start, inputs=np.asarray(jax.random.normal(start_key, start.inputs.shape)))
        # Images that hold four take theirs from four times as many real ones, which the front door draws.
        if arguments.get("formation", 1) == 1:
            arguments["coreset"] = start
        if method.experts:
            experts = [self.experts(name) for name in method.networks]
            arguments["experts"] = experts if len(experts) > 1 else experts[0]
        if cell.method == "bacon":  # on fresh random networks, as distribution matching
            del arguments["experts"]
        return getattr(pc, method.fit)(
            models if len(models) > 1 else models[0],
            self.data,
            images_per_class=size,
            key=fit_key,
            progress=False,
            checkpoint_dir=checkpoint_dir,
            callbacks=[lambda step, coreset, info: time.monotonic() > self.deadline],
            **arguments,
        )

    def score(self, cell: Cell, coreset: pc.Pseudocoreset, data: pc.Dataset) -> dict[str, Any]:
        """Metrics by name, each a mean, a spread over repeats and a standard error over test images."""
        by_count = self.scale.protocols[cell.protocol]
        chosen = dict(by_count.get(None, {})) | dict(by_count.get(cell.images_per_class, {}))
        model, key = self.models[cell.network], keys(cell.images_per_class, cell.seed)[2]
        if cell.protocol == "corruptions":
            return corruptions(model, coreset, data, key, chosen)
        found = evaluate(
            coreset,
            {cell.network: model},
            data,
            protocol=cell.protocol,
            split="test",
            key=key,
            progress=False,
            **chosen,
        )[cell.network]
        return {
            name: [one.mean, one.spread, one.standard_error] for name, one in found.metrics.items() if name in SCORES
        }

    def run(self, cell: Cell) -> dict[str, Any]:
        """The record of a cell."""
        coreset, fitted = self.coreset(cell)
        began = time.perf_counter()
        try:
            scores: dict[str, Any] = {"metrics": _rounded(self.score(cell, coreset, self.data))}
        except FloatingPointError as error:
            scores = {"failed": str(error)}
        return {
            **asdict(cell),
            **scores,
            "fit": fitted,
            "seconds": round(time.perf_counter() - began, 1),
            "key": np.asarray(jax.random.key_data(base_key(cell.images_per_class, cell.seed))).tolist(),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }


def corruptions(
    model: Model, coreset: pc.Pseudocoreset, data: pc.Dataset, key: jax.Array, chosen: dict[str, Any]
) -> dict[str, Any]:
    """Averages over the ten corruptions and five severities."""
    from pseudocoreset.diagnostics import robustness
    from pseudocoreset.inference import sample

    options = dict(chosen)
    coreset = coreset.with_mass(options.pop("mass"))
    sample_key, noise_key = jax.random.split(key)
    posterior = sample(
        model, coreset, kernel="sghmc", key=sample_key, keep="weights", predict_on=data.test, progress=False, **options
    )
    found = robustness(posterior, data.test, key=noise_key, clean=posterior)
    names = ("accuracy", "nll", "ece", "degradation")
    metrics = {name: [float(getattr(found.overall, name)), None, None] for name in names}
    return metrics | {"clean_accuracy": [found.clean.accuracy, None, None]}


def base_key(size: int, seed: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(3000 + seed), size)


def keys(size: int, seed: int) -> jax.Array:
    """Keys of the start, of the fit and of the scores: the same for every method."""
    return jax.random.split(base_key(size, seed), 3)


@dataclass(frozen=True)
class Results:
    """The file of one scale."""

    path: pathlib.Path

    def read(self) -> dict[str, Any]:
        if self.path.is_file():
            return json.loads(self.path.read_text())
        return {"machines": {}, "settings": {}, "cells": []}

    def done(self, scale: Scale) -> dict[Cell, dict[str, Any]]:
        """Records of cells of the grid as it is now, by cell."""
        names = Cell.__dataclass_fields__
        found = {Cell(**{name: one[name] for name in names}): one for one in self.read()["cells"]}
        return {
            cell: found[cell]
            for cell in cells(scale)
            if cell in found and found[cell]["settings"] == digest(settings(scale, cell))
        }

    def add(self, scale: Scale, cell: Cell, record: dict[str, Any]) -> None:
        content = self.read()
        machine, chosen = describe_machine(), settings(scale, cell)
        machine_name, chosen_name = digest(machine), digest(chosen)
        kept = [one for one in content["cells"] if any(one[name] != value for name, value in asdict(cell).items())]
        every = [*kept, {**record, "settings": chosen_name, "machine": machine_name}]
        used = {one["settings"] for one in every}
        content["machines"][machine_name] = machine
        content["settings"][chosen_name] = chosen
        write_lines(
            self.path,
            {
                "machines": {name: content["machines"][name] for name in sorted({one["machine"] for one in every})},
                "settings": {name: value for name, value in content["settings"].items() if name in used},
                "cells": every,
            },
        )


def write_lines(path: pathlib.Path, content: dict[str, Any]) -> None:
    """JSON with one line a machine, setting or cell, so that a new cell is a line of the difference."""
    parts = []
    for name, part in content.items():
        if isinstance(part, dict):
            lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in part.items()]
        else:
            lines = [f"  {json.dumps(value)}" for value in part]
        opening, closing = "{}" if isinstance(part, dict) else "[]"
        parts.append(f" {json.dumps(name)}: {opening}\n" + ",\n".join(lines) + f"\n {closing}")
    _replace(path, "{\n" + ",\n".join(parts) + "\n}\n")


def write(path: pathlib.Path, content: Any) -> None:
    _replace(path, json.dumps(content) + "\n")


def _replace(path: pathlib.Path, text: str) -> None:
    """Written beside it and renamed: a run may be killed at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(text)
    os.replace(beside, path)


def _rounded(value: Any) -> Any:
    """Five significant digits: what is beyond is noise."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def chosen_cells(scale: Scale, only: list[str] | None, seeds: list[int] | None) -> Iterator[Cell]:
    for cell in cells(scale):
        named = only is None or any(fnmatch.fnmatchcase(str(cell), pattern) for pattern in only)
        if named and (seeds is None or cell.seed in seeds):
            yield cell


def listed(scale: Scale, chosen: list[Cell], results: Results) -> list[str]:
    """A line a cell, and sums. A coreset counts once, with the first of its cells."""
    done = results.done(scale)
    records = results.read()["cells"]
    known = {(cell.method, cell.images_per_class, cell.seed) for cell in done}
    lines, total, unknown = [], 0.0, 0
    for cell in chosen:
        if cell in done:
            lines.append(f"{cell}  done")
            continue
        cost = score_seconds(scale, cell, records)
        if (cell.method, cell.images_per_class, cell.seed) not in known:
            known.add((cell.method, cell.images_per_class, cell.seed))
            fit = fit_seconds(scale, cell, records)
            cost = None if cost is None or fit is None else cost + fit
        unknown += cost is None
        total += cost or 0.0
        lines.append(f"{cell}  " + ("unknown" if cost is None else f"{cost:.0f} s"))
    networks = {name for cell in chosen if METHODS[cell.method].experts for name in METHODS[cell.method].networks}
    training = {name: expert_seconds(scale, name) for name in scale.networks if name in networks}
    experts = ", ".join(f"{name} {seconds or 0:.0f} s" for name, seconds in training.items())
    lines.append(
        f"{scale.name}: {len(chosen)} cells, {sum(cell in done for cell in chosen)} done; "
        f"about {total / 60:.0f} minutes to go"
        + (f" and {unknown} cells of unknown cost" if unknown else "")
        + (f"; experts, where they are not kept: {experts}" if experts else "")
    )
    return lines


def tune(bench: Bench, chosen: list[Cell], step_sizes: list[float]) -> None:
    """Scores on training images, with a seed that is not measured with, for each step size."""
    data = replace(bench.data, test=bench.data.train.head(len(bench.data.test)))
    for method, size in dict.fromkeys((cell.method, cell.images_per_class) for cell in chosen):
        if not METHODS[method].learns:
            continue
        for step_size in step_sizes:
            cell = next(one for one in chosen if (one.method, one.images_per_class) == (method, size))
            cell = replace(cell, seed=TUNING_SEED)
            arguments = dict(bench.scale.learning[method][size]) | {"step_size": step_size}
            result = bench.fit(cell, arguments, None)
            scores = []
            for protocol in dict.fromkeys(one.protocol for one in chosen):
                found = bench.score(replace(cell, protocol=protocol), result.coreset, data)
                scores.append(f"{protocol} {found['accuracy'][0]:.4f} {found['nll'][0]:.3f}")
            print(method, size, f"{step_size:g}", result.outcome.name, *scores, f"{result.seconds:.0f} s", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", default="cpu", choices=list(GRIDS))
    parser.add_argument("--data-dir")
    parser.add_argument("--work", type=pathlib.Path, help="where experts and coresets are kept")
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "results" / "paper")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="cells by name, as 'digits/function_kl*/10/*'")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--minutes", type=float, help="stop by itself after these")
    parser.add_argument("--list", action="store_true", help="print the cells and what they cost, and run none")
    parser.add_argument("--experts", action="store_true", help="train the experts that the cells need, and no more")
    parser.add_argument("--tune", type=float, nargs="+", metavar="STEP_SIZE", help="try step sizes on training images")
    args = parser.parse_args(arguments)
    if args.work is None and not args.list:
        parser.error("--work is needed to run")
    deadline = math.inf if args.minutes is None else time.monotonic() + 60 * args.minutes
    if args.work is not None:
        # What one seed has compiled the others load.
        jax.config.update("jax_compilation_cache_dir", str(args.work / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    any_chosen = False
    for scale in grid(args.grid):
        chosen = list(chosen_cells(scale, args.only, args.seeds))
        if not chosen:
            continue
        any_chosen = True
        results = Results(args.results / f"{scale.name}.json")
        if args.list:
            print(*listed(scale, chosen, results), sep="\n")
            continue
        bench = Bench(scale, args.data_dir, args.work / scale.name, deadline)
        if args.experts:
            for name in dict.fromkeys(
                n for c in chosen if METHODS[c.method].experts for n in METHODS[c.method].networks
            ):
                bench.experts(name)
        elif args.tune:
            tune(bench, chosen, args.tune)
        elif not run_cells(bench, chosen, results):
            print("stopped: the minutes are over", flush=True)
            return
    if not any_chosen:
        parser.error(f"no cell of the grid {args.grid!r} is named by {args.only}")


def run_cells(bench: Bench, chosen: list[Cell], results: Results) -> bool:
    """Run what is not done. False when the minutes were over first."""
    done = results.done(bench.scale)
    for count, cell in enumerate(one for one in chosen if one not in done):
        if time.monotonic() > bench.deadline:
            return False
        if count % CLEAR_EVERY == CLEAR_EVERY - 1:
            jax.clear_caches()  # each program takes memory maps, of which a process has a limited number
        try:
            record = bench.run(cell)
        except OutOfTime:
            return False
        results.add(bench.scale, cell, record)
        metrics = record.get("metrics", {})
        print(cell, *(f"{name} {metrics[name][0]:.4f}" for name in ("accuracy", "nll") if name in metrics), flush=True)
    return True


if __name__ == "__main__":
    main()
