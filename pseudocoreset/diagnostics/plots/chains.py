"""Pictures of chains by arviz-plots: of what they predict, of their energy, and of the parameters of small models.

Each returns arviz-plots' ``PlotCollection``; its figure is ``collection.viz["figure"].item()``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pseudocoreset.arguments import checked
from pseudocoreset.diagnostics.distances.moments import parameter_names
from pseudocoreset.inference.posterior.likelihoods import log_probability_blocks, mean_blocks, same_data
from pseudocoreset.inference.posterior.model import accepts_model, held_out, model_of
from pseudocoreset.rows import spread_indices
from pseudocoreset.validation import check_choice, check_integer

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

    from pseudocoreset.inference import Posterior

__all__ = ["plot_energy", "plot_ess", "plot_forest", "plot_marginals", "plot_rank", "plot_trace"]

MAX_INPUTS = 200
# Titles of two lines need the room.
_STYLE: dict[str, Any] = {"backend": "matplotlib", "figure_kwargs": {"layout": "constrained"}}
MIN_DRAWS = 8  # of a chain, for effective sample sizes of parts of it and for energies


@accepts_model
@checked
def plot_trace(posterior: Posterior, *, num_inputs: int = 4) -> PlotCollection:
    """Trace of predictions at the held-out inputs where they vary most over draws; see ``plot_rank``.

    Args:
        posterior: Draws evaluated on held-out inputs.
        num_inputs: Panels.

    Returns:
        An arviz-plots ``PlotCollection``.
    """
    import arviz_plots

    return arviz_plots.plot_trace(_prediction_tree(posterior, num_inputs), **_STYLE)


@accepts_model
@checked
def plot_rank(posterior: Posterior, *, num_inputs: int = 4) -> PlotCollection:
    """Rank plot of predictions at the held-out inputs where they vary most over draws.

    A chain that explores the same distribution as the others stays within the grey band.

    Args:
        posterior: Draws evaluated on held-out inputs.
        num_inputs: Panels.

    Returns:
        An arviz-plots ``PlotCollection``.
    """
    import arviz_plots

    # Since arviz-plots 1.3 the band must be asked for; the default is a test of several chains, which one has not.
    has_methods = "method" in inspect.signature(arviz_plots.plot_rank).parameters
    band: dict[str, Any] = {"method": "envelope", "thin": False} if has_methods else {}
    return arviz_plots.plot_rank(_prediction_tree(posterior, num_inputs), **band, **_STYLE)


@accepts_model
@checked
def plot_ess(posterior: Posterior, *, num_inputs: int = 4, kind: str = "local") -> PlotCollection:
    """Effective sample size of predictions at the held-out inputs where they vary most over draws.

    Args:
        posterior: Draws evaluated on held-out inputs, eight or more a chain.
        num_inputs: Panels.
        kind: ``"local"``, of small intervals of the prediction, ``"quantile"``, or ``"evolution"`` with the number of
            draws: chains that mix gain in proportion.

    Returns:
        An arviz-plots ``PlotCollection``.

    Raises:
        ValueError: An unknown kind, or fewer draws.
    """
    import arviz_plots

    check_choice(kind, "kind", ("local", "quantile", "evolution"))
    if posterior.num_draws < MIN_DRAWS:
        raise ValueError(f"plot_ess needs at least {MIN_DRAWS} draws a chain; posterior has {posterior.num_draws}")
    tree = _prediction_tree(posterior, num_inputs)
    least = 100 * posterior.num_chains  # what a comparison calls good
    if kind == "evolution":
        return arviz_plots.plot_ess_evolution(tree, min_ess=least, **_STYLE)
    return arviz_plots.plot_ess(tree, kind=kind, min_ess=least, **_STYLE)


@accepts_model
@checked
def plot_forest(posteriors: Posterior | Mapping[str, Posterior], *, num_inputs: int = 10) -> PlotCollection:
    """Intervals of predictions at a few held-out inputs, of one posterior or of several side by side.

    Inputs are those where the predictions of the first posterior vary most over draws; of classes, the probability of
    the one that it finds likeliest is shown.

    Args:
        posteriors: Draws evaluated on the same held-out inputs.
        num_inputs: Rows.

    Returns:
        An arviz-plots ``PlotCollection``.

    Raises:
        ValueError: No posterior, or posteriors evaluated on different data.
    """
    import arviz_plots

    named = dict(posteriors) if isinstance(posteriors, Mapping) else {"": posteriors}
    if not named:
        raise ValueError("posteriors is empty; give at least one, {'coreset': posterior}")
    first = next(iter(named.values()))
    for name, posterior in named.items():
        if not same_data(held_out(first), held_out(posterior)):
            raise ValueError(
                f"the posterior {name!r} was evaluated on other held-out data than {next(iter(named))!r}; evaluate "
                "both on one split, posterior.evaluate(split)"
            )
    inputs, classes = _telling_inputs(first, num_inputs)
    trees = {name: _tree_at(posterior, inputs, classes) for name, posterior in named.items()}
    what = trees if isinstance(posteriors, Mapping) else trees[""]
    collection = arviz_plots.plot_forest(what, combined=True, **_STYLE)
    if len(named) > 1:
        collection.add_legend("model", title="posterior")
    return collection


@checked
def plot_energy(posterior: Posterior) -> PlotCollection:
    """Energy of the draws against its changes between draws (Betancourt 2016); of HMC and NUTS.

    Changes that are much smaller than the spread mean that the chains move slowly through the energy levels.

    Args:
        posterior: Draws of the kernel ``"hmc"`` or ``"nuts"``.

    Returns:
        An arviz-plots ``PlotCollection``.

    Raises:
        ValueError: The kernel does not report an energy.
    """
    import arviz_base
    import arviz_plots

    energy = posterior.sample_stats.get("energy")
    if energy is None:
        raise ValueError(
            f"plot_energy needs the energy of each draw, which the kernel {posterior.metadata.get('kernel')!r} does "
            "not report; 'hmc' and 'nuts' do"
        )
    tree = arviz_base.from_dict({"sample_stats": {"energy": np.asarray(energy)}}, check_conventions=False)
    return arviz_plots.plot_energy(tree, **_STYLE)


@checked
def plot_marginals(
    posteriors: Mapping[str, Posterior], *, max_parameters: int = 12, kind: str = "kde"
) -> PlotCollection:
    """Marginals of the parameters under several posteriors, drawn over each other; for models of few parameters.

    Args:
        posteriors: Draws by name, with the same sites; constrained values are shown.
        max_parameters: Panels. Of more parameters, so many are shown, evenly spread.
        kind: ``"kde"``, ``"hist"``, ``"ecdf"`` or ``"dot"``, as arviz-plots draws them.

    Returns:
        An arviz-plots ``PlotCollection``.

    Raises:
        ValueError: No posterior, one without draws, or one with other sites.
    """
    import arviz_base
    import arviz_plots

    check_integer(max_parameters, "max_parameters")
    check_choice(kind, "kind", ("kde", "hist", "ecdf", "dot"))
    if not posteriors:
        raise ValueError("posteriors is empty; give at least one, {'coreset': posterior}")
    sites = {name: {site: a.shape[2:] for site, a in p.draws.items()} for name, p in posteriors.items()}
    first = next(iter(sites))
    for name, shapes in sites.items():
        if not shapes:
            raise ValueError(f"the posterior {name!r} kept no draws of its parameters; sample with keep='weights'")
        if shapes != sites[first]:
            raise ValueError(f"the posterior {name!r} has the sites {shapes}; those of {first!r} are {sites[first]}")
    labels = np.asarray(parameter_names(dict(next(iter(posteriors.values())).draws)))
    shown = spread_indices(len(labels), max_parameters)

    def tree(posterior: Posterior) -> Any:
        flat = [posterior.draws[site].reshape(posterior.num_chains, posterior.num_draws, -1) for site in sites[first]]
        values = np.concatenate(flat, axis=-1).astype(np.float64)
        return arviz_base.from_dict(
            {"posterior": {str(labels[i]): values[..., i] for i in shown}}, check_conventions=False
        )

    collection = arviz_plots.plot_dist(
        {name: tree(posterior) for name, posterior in posteriors.items()},
        kind=kind,
        visuals={"point_estimate_text": False, "point_estimate": False},
        **_STYLE,
    )
    if len(posteriors) > 1:
        collection.add_legend("model", title="posterior")
    return collection


def _telling_inputs(posterior: Posterior, num_inputs: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Held-out inputs where predictions vary most over draws, and the likeliest class of each."""
    if num_inputs < 1:
        raise ValueError(f"num_inputs must be at least 1; got {num_inputs}")
    inputs = spread_indices(held_out(posterior).num_data, MAX_INPUTS)
    values, likeliest = _predictions(posterior, inputs, None)
    chosen = np.sort(np.argsort(-values.var(axis=(0, 1)), kind="stable")[:num_inputs])
    return inputs[chosen], None if likeliest is None else likeliest[chosen]


def _predictions(
    posterior: Posterior, inputs: np.ndarray, classes: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """(chain, draw, i) probabilities of ``classes``, or of the likeliest, and those; or means."""
    if model_of(posterior).num_classes is None:
        values = np.concatenate(list(mean_blocks(posterior, inputs=inputs)))[..., 0]
    else:
        probabilities = np.exp(np.concatenate(list(log_probability_blocks(posterior, inputs=inputs))))
        classes = probabilities.mean(0).argmax(-1) if classes is None else classes
        values = probabilities[:, np.arange(len(inputs)), classes]
    return values.reshape(posterior.num_chains, posterior.num_draws, -1), classes


def _tree_at(posterior: Posterior, inputs: np.ndarray, classes: np.ndarray | None) -> Any:
    import arviz_base

    values, classes = _predictions(posterior, inputs, classes)
    name = "mean" if classes is None else "probability"
    return arviz_base.from_dict(
        {"posterior": {name: values}}, dims={name: ["input"]}, coords={"input": inputs}, check_conventions=False
    )


def _prediction_tree(posterior: Posterior, num_inputs: int) -> Any:
    return _tree_at(posterior, *_telling_inputs(posterior, num_inputs))
