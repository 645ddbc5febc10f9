"""The model that draws are of: ``sample`` gives it to them, files do not hold it, diagnostics ask the posterior."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pseudocoreset.arguments import described
from pseudocoreset.models import Model
from pseudocoreset.rows import ModelInputs

if TYPE_CHECKING:
    from pseudocoreset.data import Split
    from pseudocoreset.inference.posterior.draws import Posterior

__all__ = ["accepts_model", "attached", "bound", "check_is_of", "held_out", "model_of"]

F = TypeVar("F", bound=Callable[..., Any])


def bound(model: Model, split: Split) -> Model:
    """The model with the shape of a datum fixed; a split that does not fit it is refused."""
    return model.bind(ModelInputs.of(split), split.y, check=False)


def held_out(posterior: Posterior) -> Split:
    """The held-out data that a posterior was evaluated on.

    Raises:
        ValueError: There are none.
    """
    if posterior.predict_on is None:
        raise ValueError(
            "the posterior was not evaluated on held-out inputs; sample with predict_on=..., or, when its weights "
            "were kept, use posterior.evaluate(split)"
        )
    return posterior.predict_on


def model_of(posterior: Posterior, called: str = "this posterior") -> Model:
    """The model of a posterior, bound to the held-out data that it was evaluated on.

    Args:
        posterior: The draws.
        called: How the error calls the posterior.

    Raises:
        ValueError: The posterior comes from files, and was not given its model yet.
    """
    if posterior.model is None:
        raise ValueError(
            f"the model is needed, and {called} does not know it, since files do not hold models; give it: "
            "posterior.with_model(model), or Posterior.load(path, model=model)"
        )
    return posterior.model if posterior.predict_on is None else bound(posterior.model, posterior.predict_on)


def check_is_of(posterior: Posterior, model: Model, called: str = "the posterior") -> None:
    """Refuse a model that draws are not of, by its name and, where it is bound, by its sites.

    Args:
        posterior: The draws.
        model: The model.
        called: How the error calls the posterior.

    Raises:
        ValueError: It is of another model.
    """
    wanted = {site.name: list(site.unconstrained_shape) for site in model.sites} if model.is_bound else None
    made = posterior.metadata.get("model", model.name)
    kept = posterior.unconstrained
    sites = None if kept is None else {site: list(array.shape[2:]) for site, array in kept.items()}
    sites = posterior.metadata.get("sites", sites)
    if made != model.name or not (sites is None or wanted is None or sites == wanted):
        raise ValueError(
            f"{called} is of the model {made!r} with the sites {sites or 'not known'}; it is taken as one of "
            f"{model.name!r} with the sites {wanted or 'not known'}. Give the model that it was sampled from"
        )


def attached(model: Model, value: Any, called: str = "the posterior") -> Any:
    """A posterior, or posteriors by name, with their model; anything else as it is."""
    if isinstance(value, Mapping) and any(hasattr(one, "with_model") for one in value.values()):
        return {name: attached(model, one, f"the posterior {name!r}") for name, one in value.items()}
    if not hasattr(value, "with_model"):
        return value
    if value.predict_on is not None:
        model = bound(model, value.predict_on)
    check_is_of(value, model, called)
    return dataclasses.replace(value, model=model)


def accepts_model(function: F) -> F:
    """Let callers name the model of the posteriors that they give: as the second argument, or as ``model=``.

    Every posterior among the arguments is given it, as by ``Posterior.with_model``, so that posteriors from files need
    no step of their own; the function asks its posteriors, and does not see the model. None is no model.

    Raises:
        TypeError: at a call, if ``model`` is no model.
        ValueError: at a call, if a posterior is of another model.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        model = kwargs.pop("model", None)
        if len(args) > 1 and (args[1] is None or isinstance(args[1], Model)):
            model, args = args[1], (args[0], *args[2:])
        if model is None:
            return function(*args, **kwargs)
        if not isinstance(model, Model):
            raise TypeError(f"model must be a Model; got {described(model)}")
        given = [attached(model, value) for value in args]
        return function(*given, **{name: attached(model, value) for name, value in kwargs.items()})

    return cast(F, call)
