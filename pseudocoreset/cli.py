"""The command ``pseudocoreset``: experts, fit, evaluate, sample, compare, report, demo."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
import typer.core

__all__ = ["app", "main"]

GOES_ON = "The same command goes on where this one was stopped."
AFTER_INTERRUPT = {
    "experts": GOES_ON,
    "sample": GOES_ON,
    "fit": f"{GOES_ON[:-1]} if it has --checkpoint-dir; without, it begins again.",
}


class _Commands(typer.core.TyperGroup):
    """Commands that say after Ctrl-C how they go on, and end with 130 as shells expect."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            said = AFTER_INTERRUPT.get(ctx.invoked_subcommand, "")
            typer.echo(f"\nInterrupted. {said}".rstrip(), err=True)
            raise typer.Exit(130) from None


def _say(text: str) -> None:
    """Print what is on disk already: the command has done its work, whether or not somebody can read it."""
    try:
        typer.echo(text)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        # Else the interpreter tries again at its end.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


app = typer.Typer(
    cls=_Commands,
    name="pseudocoreset",
    help="Learn a few synthetic data whose Bayesian posterior matches that of the whole data set, and check it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

DataName = Annotated[
    str, typer.Option("--data", help="digits, mnist, fashion_mnist, svhn, cifar10, cifar100, tiny_imagenet")
]
DataDir = Annotated[pathlib.Path | None, typer.Option(help="tensorflow-datasets folder; its own default if not given")]
Seed = Annotated[int, typer.Option(help="the seed of everything random")]
Depth = Annotated[int, typer.Option(help="blocks of the ConvNet")]
Width = Annotated[int, typer.Option(help="filters of the ConvNet")]
NormKind = Annotated[str, typer.Option("--norm", help="instance, group, layer, batch or none")]
Zca = Annotated[bool, typer.Option("--zca", help="whiten the images")]
Devices = Annotated[
    int, typer.Option(min=1, help="devices that share the work; a CPU is made into as many, give it one a core")
]


NETWORKS = {name.lower(): name for name in ("ConvNet", "ResNet18", "ResNet34", "VGG11", "AlexNet", "LeNet", "MLP")}


def _data_and_model(data: str, data_dir: pathlib.Path | None, zca: bool, depth: int, width: int, norm: str) -> Any:
    from pseudocoreset.data import load_dataset
    from pseudocoreset.models import ConvNet, bnn

    dataset = load_dataset(data, data_dir=data_dir, zca=zca)
    return dataset, bnn(ConvNet(depth=depth, width=width, norm=norm), dataset)


def _coreset(place: pathlib.Path) -> Any:
    """The coreset in a folder, or the one that comes with the package under this name."""
    from pseudocoreset.coreset import Pseudocoreset, coreset_names, load_coreset

    name = str(place)
    return load_coreset(name) if name in coreset_names() and not place.exists() else Pseudocoreset.load(place)


def _mesh(devices: int, stack: int | None = None) -> Any:
    """So many devices of this machine, None for one; what is fewer than they are has its data shared among them."""
    if devices == 1:
        return None
    import jax

    # Where devices are there already, as many as there are have to do.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices)
    found = jax.devices()
    if len(found) < devices:
        raise typer.BadParameter(f"--devices {devices}: JAX has {len(found)} of {found[0].platform!r}")
    axis = "data" if stack is not None and stack < devices else "devices"
    return jax.make_mesh((devices,), (axis,), devices=found[:devices])


@app.command()
def demo(
    out: Annotated[pathlib.Path, typer.Option(help="folder for the results")] = pathlib.Path("demo"),
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """The whole road on bundled handwritten digits: experts, FBPC, three posteriors, a report. A few minutes."""
    import jax

    from pseudocoreset.demo import run_demo

    _check_free("--out", out, overwrite, "metrics.json")
    metrics = run_demo(out, key=jax.random.key(seed))
    _say(f"{'posterior of':<14}{'accuracy':>10}{'NLL':>8}{'Brier':>8}{'ECE':>8}")
    for name, label in (("full", "all data"), ("fbpc", "FBPC coreset"), ("random", "random images")):
        row = metrics[name]
        _say(f"{label:<14}{row['accuracy']:>10.1%}{row['nll']:>8.3f}{row['brier']:>8.3f}{row['ece']:>8.3f}")
    _say(f"{metrics['seconds']['total']:.0f} s. Open {out / 'report.html'}")


@app.command()
def experts(
    out: Annotated[pathlib.Path, typer.Option(help="folder for the snapshots; a run that was stopped goes on there")],
    data: DataName = "cifar10",
    data_dir: DataDir = None,
    num_experts: Annotated[int, typer.Option(help="trajectories")] = 10,
    num_epochs: Annotated[int, typer.Option(help="passes over the data")] = 50,
    learning_rate: Annotated[float, typer.Option(help="SGD step size")] = 0.01,
    batch_size: Annotated[int, typer.Option(help="data a step")] = 256,
    depth: Depth = 3,
    width: Width = 128,
    norm: NormKind = "instance",
    zca: Zca = False,
    devices: Devices = 1,
    seed: Seed = 0,
) -> None:
    """Train expert trajectories on the full data, a snapshot every epoch."""
    import jax

    from pseudocoreset.experts import train_experts

    mesh = _mesh(devices, num_experts)
    dataset, model = _data_and_model(data, data_dir, zca, depth, width, norm)
    trained = train_experts(
        model,
        dataset,
        num_experts=num_experts,
        num_epochs=num_epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        key=jax.random.key(seed),
        directory=out,
        mesh=mesh,
    )
    _say(repr(trained))


Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what an earlier run left at this place")]


def _check_free(
    option: str, place: pathlib.Path, overwrite: bool, mark: str | None = None, ours: pathlib.Path | None = None
) -> None:
    """Refuse, before anything runs, a place that is taken; with --overwrite a folder that holds something else.

    Args:
        option: how the place was given.
        place: a file, or with ``mark`` a folder.
        overwrite: whether the user said so.
        mark: the file by which a folder is known to hold what may be replaced.
        ours: a folder directly in ``place`` that is kept, as it holds the checkpoints of this very run.
    """
    mine = None if ours is None else ours.resolve()
    is_taken = any(entry.resolve() != mine for entry in place.iterdir()) if place.is_dir() else place.exists()
    if not is_taken:
        return
    if not overwrite:
        raise typer.BadParameter(f"{option} {place} is there already; give another place, or --overwrite to replace it")
    if place.is_dir() and (mark is None or not (place / mark).is_file()):
        raise typer.BadParameter(f"{option} {place} is a folder with something else in it; give another place")


@contextlib.contextmanager
def _kept(inner: pathlib.Path | None, place: pathlib.Path) -> Iterator[None]:
    """Take a folder directly in ``place`` out of it while that is replaced whole."""
    if inner is None or inner.parent.resolve() != place.resolve() or not inner.is_dir():
        yield
        return
    aside = place.with_name(f".{place.name}.{inner.name}")
    inner.rename(aside)
    try:
        yield
    finally:
        aside.rename(inner)


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option} must be ones, data or a number; got {text!r}") from error


@app.command()
def fit(
    out: Annotated[pathlib.Path, typer.Option(help="folder for the coreset")],
    method: Annotated[
        str,
        typer.Option(help="name of a method (fbpc, bpc_fkl, herding, ...), auto, or package.module:Class of your own"),
    ] = "fbpc",
    experts_dir: Annotated[
        pathlib.Path | None, typer.Option("--experts", help="folder of `pseudocoreset experts`; trained if not given")
    ] = None,
    data: DataName = "cifar10",
    data_dir: DataDir = None,
    images_per_class: Annotated[int, typer.Option(help="points of each class")] = 1,
    proxy: Annotated[
        str | None, typer.Option(help="trajectory, isotropic or linearized (fbpc); the method's own if not given")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="updates; the paper's number if not given")] = None,
    step_size: Annotated[float | None, typer.Option(help="step on the inputs; the paper's if not given")] = None,
    weights: Annotated[
        str | None, typer.Option(help="mass of the weights: data or ones; if not given, data once it is learned")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="a setting of the method, num_draws=50 say"),
    ] = None,
    overwrite: Overwrite = False,
    checkpoint_dir: Annotated[pathlib.Path | None, typer.Option(help="checkpoints, to go on from if stopped")] = None,
    verdict: Annotated[bool, typer.Option(help="judge the coreset at the end")] = True,
    depth: Depth = 3,
    width: Width = 128,
    norm: NormKind = "instance",
    zca: Zca = False,
    devices: Devices = 1,
    seed: Seed = 0,
) -> None:
    """Learn a coreset, at the mass of the data: its posterior has the scale of the full-data one."""
    import jax

    from pseudocoreset.experts import Experts
    from pseudocoreset.fitting.door import fit as fit_coreset
    from pseudocoreset.fitting.door import method_class

    if method != "auto":
        method_class(method)
    _check_free("--out", out, overwrite, "coreset.json", checkpoint_dir)
    if checkpoint_dir is not None and checkpoint_dir.resolve() == out.resolve():
        raise typer.BadParameter("--checkpoint-dir and --out must be two folders; give --checkpoint-dir another")
    mesh = _mesh(devices, 1)  # a step trains one network, but for methods that share what is not its data
    dataset, model = _data_and_model(data, data_dir, zca, depth, width, norm)
    trained = None if experts_dir is None else Experts.load(experts_dir)
    given = {"proxy": proxy, "steps": steps, "step_size": step_size, "weights": weights, "experts": trained}
    named = {name: value for name, value in given.items() if value is not None}
    result = fit_coreset(
        model,
        dataset,
        method,
        images_per_class=images_per_class,
        key=jax.random.key(seed),
        checkpoint_dir=checkpoint_dir,
        mesh=mesh,
        verdict=verdict,
        **named | dict(_setting(text) for text in setting or ()),
    )
    if weights is None:
        # What published evaluations score does not depend on the mass; a posterior does.
        result = dataclasses.replace(result, coreset=result.coreset.with_mass("data"))
    with _kept(checkpoint_dir, out):
        result.coreset.save(out)
    _say(repr(result))


@app.command()
def sample(
    out: Annotated[pathlib.Path, typer.Option(help="folder for the posterior; a run that was stopped goes on there")],
    coreset: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="folder of a coreset, or the name of one that comes with the package; the full data if not given"
        ),
    ] = None,
    data: DataName = "cifar10",
    data_dir: DataDir = None,
    kernel: Annotated[
        str, typer.Option(help="sghmc, sgld, nuts, hmc, network_hmc, mclmc, adjusted_mclmc or blackjax_sghmc")
    ] = "sghmc",
    num_chains: Annotated[int, typer.Option(help="chains")] = 4,
    num_warmup: Annotated[int, typer.Option(help="steps before the first draw")] = 500,
    num_samples: Annotated[int, typer.Option(help="draws of each chain")] = 50,
    thinning: Annotated[int, typer.Option(help="steps between draws")] = 10,
    temperature: Annotated[float, typer.Option(help="1 is the posterior")] = 1.0,
    mass: Annotated[str | None, typer.Option(help="rescale the coreset's weights: ones, data or a number")] = None,
    augment: Annotated[str | None, typer.Option(help="auto or a strategy: augment for each gradient")] = None,
    depth: Depth = 3,
    width: Width = 128,
    norm: NormKind = "instance",
    zca: Zca = False,
    devices: Devices = 1,
    seed: Seed = 0,
) -> None:
    """Sample the posterior of a coreset, or of the full data; predictions on the test images are kept."""
    import jax

    from pseudocoreset.inference import sample as sample_posterior

    mesh = _mesh(devices, num_chains)
    dataset, model = _data_and_model(data, data_dir, zca, depth, width, norm)
    source = dataset if coreset is None else _coreset(coreset)
    if mass is not None:
        if coreset is None:
            raise typer.BadParameter("--mass goes with --coreset")
        source = source.with_mass(mass if mass in ("ones", "data") else _number(mass, "--mass"))
    posterior = sample_posterior(
        model,
        source,
        kernel=kernel,
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_samples=num_samples,
        thinning=thinning,
        temperature=temperature,
        augment=augment,
        key=jax.random.key(seed),
        predict_on=dataset.test,
        directory=out,
        mesh=mesh,
    )
    _say(repr(posterior))


@app.command()
def evaluate(
    coreset: Annotated[
        pathlib.Path, typer.Argument(help="folder of a coreset, or the name of one that comes with the package")
    ],
    protocol: Annotated[str, typer.Option(help="default, kim2022, fbpc2023 or distillation")] = "default",
    split: Annotated[str, typer.Option(help="validation or test")] = "validation",
    network: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(NETWORKS)}; give it again for more of them")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="a setting of the protocol, num_repeats=3 say"),
    ] = None,
    json_file: Annotated[pathlib.Path | None, typer.Option("--json", help="also write the figures here")] = None,
    overwrite: Overwrite = False,
    data: DataName = "cifar10",
    data_dir: DataDir = None,
    depth: Depth = 3,
    width: Width = 128,
    norm: NormKind = "instance",
    zca: Zca = False,
    devices: Devices = 1,
    seed: Seed = 0,
) -> None:
    """What a coreset is worth to networks that see nothing else, by a named protocol."""
    import jax

    from pseudocoreset import models
    from pseudocoreset.data import load_dataset
    from pseudocoreset.evaluation import evaluate as evaluate_coreset
    from pseudocoreset.files.storage import write_json
    from pseudocoreset.validation import check_choice

    if json_file is not None:
        _check_free("--json", json_file, overwrite)
    mesh = _mesh(devices)
    names = network or ["convnet"]
    settings = dict(_setting(text) for text in setting or ())
    loaded = _coreset(coreset)
    dataset = load_dataset(data, data_dir=data_dir, zca=zca)
    shape: dict[str, dict[str, Any]] = {"convnet": {"depth": depth, "width": width}}
    built = {}
    for name in names:
        kind = getattr(models, NETWORKS[check_choice(name, "network", NETWORKS)])
        options = shape.get(name, {}) | ({"norm": norm} if "norm" in kind.__dataclass_fields__ else {})
        built[name] = models.bnn(kind(**options), dataset)
    model = built if len(built) > 1 else built[names[0]]
    found = evaluate_coreset(
        loaded, model, dataset, protocol=protocol, split=split, key=jax.random.key(seed), mesh=mesh, **settings
    )
    if json_file is not None:
        write_json(json_file, found.as_dict())
    typer.echo(repr(found))


def _setting(text: str) -> tuple[str, Any]:
    """``name=value``, the value in JSON, or a word."""
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise typer.BadParameter(f"write --set as NAME=VALUE; got {text!r}")
    try:
        found = json.loads(value)
    except ValueError:
        return name, value
    return name, tuple(found) if isinstance(found, list) else found


Posteriors = Annotated[list[str], typer.Argument(help="NAME=FOLDER of `pseudocoreset sample`, one or more")]
Reference = Annotated[str, typer.Option(help="the name that the others are compared with")]


def _compared(posteriors: list[str], reference: str, dataset: Any, model: Any) -> tuple[Any, dict[str, Any]]:
    """The comparison on the test images, and the posteriors by name."""
    from pseudocoreset.diagnostics import compare_posteriors
    from pseudocoreset.inference import Posterior
    from pseudocoreset.inference.posterior.model import attached

    pairs = [item.partition("=") for item in posteriors]
    if not all(name and folder for name, _, folder in pairs):
        raise typer.BadParameter("write each posterior as NAME=FOLDER")
    loaded = attached(model, {name: Posterior.load(folder) for name, _, folder in pairs})
    return compare_posteriors(loaded, dataset.test, reference=reference), loaded


@app.command()
def compare(
    posteriors: Posteriors,
    reference: Reference = "full",
    data: DataName = "cifar10",
    data_dir: DataDir = None,
    depth: Depth = 3,
    width: Width = 128,
    norm: NormKind = "instance",
    zca: Zca = False,
) -> None:
    """Compare posteriors on the test images, as a table."""
    comparison, _ = _compared(posteriors, reference, *_data_and_model(data, data_dir, zca, depth, width, norm))
    typer.echo(str(comparison))


@app.command()
def report(
    posteriors: Posteriors,
    out: Annotated[pathlib.Path, typer.Option(help="the HTML file to write")],
    coreset: Annotated[pathlib.Path | None, typer.Option(help="the coreset to picture, a folder or a name")] = None,
    reference: Reference = "full",
    overwrite: Overwrite = False,
    title: Annotated[str, typer.Option(help="heading of the page")] = "Pseudocoreset report",
    data: DataName = "cifar10",
    data_dir: DataDir = None,
    depth: Depth = 3,
    width: Width = 128,
    norm: NormKind = "instance",
    zca: Zca = False,
) -> None:
    """The same comparison as one HTML page, with plots, and the coreset beside real images."""
    from pseudocoreset.diagnostics import report as write_report

    _check_free("--out", out, overwrite)
    dataset, model = _data_and_model(data, data_dir, zca, depth, width, norm)
    pictured = None if coreset is None else _coreset(coreset)
    comparison, loaded = _compared(posteriors, reference, dataset, model)
    write_report(comparison, out, coreset=pictured, data=dataset, posteriors=loaded, title=title)
    _say(f"wrote {out}")


def main() -> None:
    """Run the command; progress and log lines go to standard error."""
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.markup import escape

    from pseudocoreset.compute.progress import keep_running
    from pseudocoreset.files.storage import CorruptFileError

    keep_running()
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False, show_level=False)
    logger = logging.getLogger("pseudocoreset")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        app(standalone_mode=True)
    except (ValueError, TypeError, OSError, FloatingPointError, CorruptFileError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        raise SystemExit(1) from error
