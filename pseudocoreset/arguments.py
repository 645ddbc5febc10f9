"""``checked``: arguments of public functions are held against their annotations, and refused by name.

An annotation says what an argument must be; this module says it to callers. It is for the doors of the package: what is
called inside compiled functions is not decorated. NumPy's numbers are numbers, every array is an array, a mapping need
not be a dictionary. Values out of range are the function's own matter.
"""

from __future__ import annotations

import ast
import builtins
import collections.abc
import contextlib
import dataclasses
import functools
import inspect
import operator
import os
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

__all__ = ["blaming", "check_call", "check_fields", "checked", "checked_class", "described"]

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)
MOST_ELEMENTS = 1000  # of a sequence or mapping that are looked at
PLURALS = {"a number": "numbers", "a string": "strings", "an integer": "integers", "an array": "arrays"}


class Wanted(NamedTuple):
    """What an argument must be.

    words
        For people.
    holds
        Whether a value is it.
    """

    words: str
    holds: Callable[[Any], bool]


class _Plan(NamedTuple):
    """How the arguments of one function are checked: by position, by name, and the rest of both."""

    positions: tuple[str, ...]
    wanted: Mapping[str, Wanted]
    more_positions: Wanted | None
    more_names: Wanted | None


def checked(function: F) -> F:
    """Refuse arguments that are not what the annotations say, before the function begins.

    The function keeps its signature, name and documentation. Annotations are read at its first call.

    Raises:
        TypeError: at a call, as ``ARGUMENT must be WANTED; got WHAT``.
    """
    plan: _Plan | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal plan
        if plan is None:
            plan = _plan_of(function)
        if (found := _first_wrong(plan, args, kwargs)) is not None:
            # A module that an annotation names may have been imported since.
            plan = _plan_of(function)
            found = _first_wrong(plan, args, kwargs)
        if found is not None:
            name, wanted, value = found
            raise TypeError(f"{name} must be {wanted.words}; got {described(value)}")
        return function(*args, **kwargs)

    return typing.cast(F, call)


def checked_class(cls: C) -> C:
    """The class, with its constructor and public methods ``checked``."""
    for name, member in list(vars(cls).items()):
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(member, classmethod | staticmethod):
            setattr(cls, name, type(member)(checked(member.__func__)))
        elif inspect.isfunction(member):
            setattr(cls, name, checked(member))
    return cls


def check_fields(instance: Any) -> None:
    """Hold the fields of a dataclass, inherited ones too, against their annotations; for its ``__post_init__``.

    Raises:
        TypeError: as ``FIELD must be WANTED; got WHAT``.
    """
    cls: Any = type(instance)
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        wanted = _field_of(cls, field.name)
        if wanted is not None and not wanted.holds(value):
            # A module that an annotation names may have been imported since.
            wanted = _field_of.__wrapped__(cls, field.name)
            if wanted is not None and not wanted.holds(value):
                raise TypeError(f"{field.name} must be {wanted.words}; got {described(value)}")


@functools.cache
def _field_of(cls: type, name: str) -> Wanted | None:
    home = next(one for one in cls.__mro__ if name in vars(one).get("__annotations__", {}))
    default = getattr(home, name, inspect.Parameter.empty)
    names = _Names(vars(sys.modules[home.__module__]))
    return _wanted_of(name, vars(home)["__annotations__"][name], default, names)


def check_call(function: Callable[..., Any], count: int, argument: str) -> None:
    """Nothing, if a user's function can be called with ``count`` positional arguments.

    Raises:
        TypeError: naming the argument that it was given for.
    """
    try:
        inspect.signature(function).bind(*range(count))
    except ValueError:  # a function without a signature
        return
    except TypeError as error:
        raise TypeError(f"{argument} must be a function of {count} arguments; got {described(function)}") from error


@contextlib.contextmanager
def blaming(call: str) -> Iterator[None]:
    """What is raised within is said to come from a function of the user: ``"coreset(key, x, y)"``.

    Raises:
        TypeError: for whatever error the function ended with.
    """
    try:
        yield
    except Exception as error:
        raise TypeError(f"{call} failed with {type(error).__name__}: {error}") from error


def described(value: Any) -> str:
    """A value in a few words: its type, and what it is where that is short."""
    if value is None or isinstance(value, bool):
        return repr(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    name = type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str | int | float | complex | bytes | list | tuple | dict | set):
        text = repr(value)
        return f"{name} {text if len(text) <= 60 else text[:57] + '...'}"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', name)}"
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def _first_wrong(plan: _Plan, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, Wanted, Any] | None:
    for i, value in enumerate(args):
        if i < len(plan.positions):
            name = plan.positions[i]
            wanted = plan.wanted.get(name)
        else:  # too many of them is what Python says itself
            name, wanted = "a positional argument", plan.more_positions
        if wanted is not None and not wanted.holds(value):
            return name, wanted, value
    for name, value in kwargs.items():
        wanted = plan.wanted.get(name, plan.more_names)
        if wanted is not None and not wanted.holds(value):
            return name, wanted, value
    return None


def _plan_of(function: Callable[..., Any]) -> _Plan:
    positions, wanted = [], {}
    more_positions = more_names = None
    names = _Names(getattr(inspect.unwrap(function), "__globals__", {}))
    for parameter in inspect.signature(function).parameters.values():
        of_it = _wanted_of(parameter.name, parameter.annotation, parameter.default, names)
        if parameter.kind is parameter.VAR_POSITIONAL:
            more_positions = of_it
        elif parameter.kind is parameter.VAR_KEYWORD:
            more_names = of_it
        else:
            if parameter.kind is not parameter.KEYWORD_ONLY:
                positions.append(parameter.name)
            if of_it is not None:
                wanted[parameter.name] = of_it
    return _Plan(tuple(positions), wanted, more_positions, more_names)


def _wanted_of(name: str, annotation: Any, default: Any, names: _Names) -> Wanted | None:
    if annotation is inspect.Parameter.empty or name == "key":  # ``check_key`` says more of a key
        return None
    try:
        wanted = _reading(names.evaluated(annotation))
    except (TypeError, NameError, AttributeError, SyntaxError):
        return None  # what cannot be read at run time is not checked
    if wanted is None or default is inspect.Parameter.empty:
        return wanted
    return wanted._replace(holds=lambda value: value is default or wanted.holds(value))


class _Names(collections.abc.Mapping[str, Any]):
    """What the names in annotations of a module stand for, those that are imported for type checkers alone too.

    No module is imported for them: of a class in a module that nobody has imported there is no value.
    """

    def __init__(self, of_module: Mapping[str, Any]) -> None:
        self._globals = of_module

    def evaluated(self, annotation: Any) -> Any:
        if isinstance(annotation, typing.ForwardRef):
            annotation = annotation.__forward_arg__
        return eval(annotation, {}, self) if isinstance(annotation, str) else annotation

    def __getitem__(self, name: str) -> Any:
        for known in (self._globals, vars(builtins)):
            if name in known:
                return known[name]
        module, attribute = _imports_for_checkers(self._globals.get("__name__", "")).get(name, ("", None))
        found = sys.modules.get(module)
        if found is None or attribute is None:
            return found if found is not None and module else _Nothing
        return getattr(found, attribute, None) or sys.modules.get(f"{module}.{attribute}", _Nothing)

    def __iter__(self) -> Iterator[str]:
        return iter(self._globals)

    def __len__(self) -> int:
        return len(self._globals)


class _NothingType(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, item: Any) -> Any:
        return cls


class _Nothing(metaclass=_NothingType):
    """In the place of a class of which there is no instance."""


@functools.cache
def _imports_for_checkers(module: str) -> Mapping[str, tuple[str, str | None]]:
    """Names in the ``if TYPE_CHECKING`` of a module: (module, attribute), the attribute None for a module itself."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError, SyntaxError):
        return {}
    found: dict[str, tuple[str, str | None]] = {}
    for block in tree.body:
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test):
            for statement in block.body:
                if isinstance(statement, ast.ImportFrom) and statement.module:
                    found |= {alias.asname or alias.name: (statement.module, alias.name) for alias in statement.names}
                elif isinstance(statement, ast.Import):
                    found |= {alias.asname or alias.name: (alias.name, None) for alias in statement.names}
    return found


def _is_tracer(value: Any) -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and not str(value.dtype).startswith("key<")


def _is_arraylike(value: Any) -> bool:
    if isinstance(value, str | bytes | type | Mapping | set | frozenset) or value is None:
        return False
    return (
        _is_array(value)
        or isinstance(value, int | float | complex | np.generic | list | tuple | range)
        or hasattr(value, "__array__")
    )


def _is_integer(value: Any) -> bool:
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        return False
    try:
        return _is_tracer(value) or operator.index(value) is not None
    except TypeError:
        return False


def _is_number(value: Any) -> bool:
    if isinstance(value, bool | np.bool_ | complex):
        return False
    if isinstance(value, int | float | np.floating | np.integer) or _is_tracer(value):
        return True
    return _is_array(value) and not value.shape and np.issubdtype(np.dtype(value.dtype), np.number)


def _is_flag(value: Any) -> bool:
    if isinstance(value, bool | np.bool_) or _is_tracer(value):
        return True
    if isinstance(value, int | np.integer):
        return value in (0, 1)
    return _is_array(value) and not value.shape and value.dtype == np.bool_


_BASIC: dict[Any, Wanted] = {
    type(None): Wanted("None", lambda value: value is None),
    None: Wanted("None", lambda value: value is None),
    bool: Wanted("True or False", _is_flag),
    int: Wanted("an integer", _is_integer),
    float: Wanted("a number", _is_number),
    str: Wanted("a string", lambda value: isinstance(value, str)),
    np.ndarray: Wanted("an array", _is_array),
    os.PathLike: Wanted("a path", lambda value: isinstance(value, os.PathLike)),
}


def _reading(annotation: Any) -> Wanted | None:
    """What an annotation wants; None where it says nothing that can be checked."""
    if annotation is Any or isinstance(annotation, TypeVar) or annotation is object:
        return None
    if isinstance(annotation, str | typing.ForwardRef):  # within an alias of another module
        return None
    if annotation in _array_types():
        return _BASIC[np.ndarray]
    if annotation in _arraylike_types():
        return Wanted("an array or a list", _is_arraylike)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _one_of(arguments)
    if origin is typing.Annotated:
        return _reading(arguments[0])
    if origin is typing.Literal:
        return Wanted("one of " + ", ".join(map(repr, arguments)), lambda value: value in arguments)
    kind = origin or annotation
    if kind in _BASIC:
        return _BASIC[kind]
    if kind in (collections.abc.Callable, Callable):
        return Wanted("a function", callable)
    if not isinstance(kind, type):
        return None
    if issubclass(kind, tuple) and kind is not tuple:
        return _instance(kind)
    if issubclass(kind, collections.abc.Mapping) and kind in (dict, collections.abc.Mapping, Mapping):
        return _mapping(arguments)
    if kind in (list, tuple, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection):
        return _sequence(kind, arguments)
    return _instance(kind)


@functools.cache
def _array_types() -> frozenset[Any]:
    jax = sys.modules.get("jax")
    return frozenset({np.ndarray}) if jax is None else frozenset({np.ndarray, jax.Array})


@functools.cache
def _arraylike_types() -> tuple[Any, ...]:
    from numpy.typing import ArrayLike

    typing_of_jax = sys.modules.get("jax.typing")
    return (ArrayLike,) if typing_of_jax is None else (ArrayLike, typing_of_jax.ArrayLike)


def _instance(kind: type) -> Wanted:
    if getattr(kind, "_is_protocol", False):
        return Wanted(kind.__name__, lambda value: True)
    if issubclass(kind, os.PathLike):
        return Wanted("a path", lambda value: isinstance(value, kind))
    article = "an" if kind.__name__[:1] in "AEIOUaeiou" else "a"
    return Wanted(f"{article} {kind.__name__}", lambda value: isinstance(value, kind))


def _one_of(annotations: tuple[Any, ...]) -> Wanted | None:
    readings = [_reading(annotation) for annotation in annotations if annotation is not _Nothing]
    if any(reading is None for reading in readings):
        return None
    wanted = [reading for reading in readings if reading is not None]
    words = list(dict.fromkeys(one.words for one in wanted))
    if {"a string", "a path"} <= set(words):
        words = ["a path" if word == "a string" else word for word in words if word != "a path"]
    words.sort(key=lambda word: word == "None")
    is_long = any(mark in word for word in words for mark in (" of ", " from ", ", each "))
    first = "None, or " if is_long and len(words) > 1 and words[-1] == "None" else ""
    words = words[:-1] if first else words
    text = first + (words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}")
    checks = tuple(one.holds for one in wanted)
    return Wanted(text, lambda value: any(check(value) for check in checks))


def _mapping(arguments: tuple[Any, ...]) -> Wanted:
    key, item = (_reading(one) for one in arguments) if len(arguments) == 2 else (None, None)

    def holds(value: Any) -> bool:
        if not isinstance(value, collections.abc.Mapping):
            return False
        if len(value) > MOST_ELEMENTS:
            return True
        return all((key is None or key.holds(k)) and (item is None or item.holds(v)) for k, v in value.items())

    of = "" if item is None else f" from {'anything' if key is None else key.words} to {item.words}"
    return Wanted(f"a dictionary{of}", holds)


def _sequence(kind: type, arguments: tuple[Any, ...]) -> Wanted:
    is_uniform = len(arguments) == 1 or arguments[1:] == (Ellipsis,)
    items = [_reading(one) for one in arguments if one is not Ellipsis]
    is_general = kind not in (list, tuple)
    wanted_type: Any = (collections.abc.Sequence, collections.abc.Set) if is_general else kind

    def holds(value: Any) -> bool:
        is_vector = is_general and _is_array(value) and len(value.shape) == 1
        if not (is_vector or isinstance(value, wanted_type)) or isinstance(value, str | bytes):
            return False
        if is_uniform:
            one = items[0]
            return one is None or len(value) > MOST_ELEMENTS or all(map(one.holds, value))
        if items and len(items) != len(value):
            return False
        return all(one is None or one.holds(v) for one, v in zip(items, value, strict=False))

    name = "a list" if kind is list else "a tuple" if kind is tuple else "a sequence"
    if is_uniform and items and items[0] is not None:
        words = items[0].words
        return Wanted(f"{name} of {PLURALS[words]}" if words in PLURALS else f"{name}, each {words}", holds)
    if len(items) == 2:
        name = "a pair"
    if items and all(items):
        return Wanted(f"{name} of {', '.join(one.words for one in items if one)}", holds)
    return Wanted(name, holds)
