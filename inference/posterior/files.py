"""How a posterior lies in its files: arrays by one name each, and a record of the rest beside them."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pseudocoreset.files.schema import (
    COUNT,
    NUMBER,
    POSITIVE,
    POSITIVE_COUNT,
    RECORD,
    TEXT,
    VERSION,
    Field,
    check_record,
    every,
    listing,
    maybe,
    optional,
)
from pseudocoreset.layout import InputLayout

if TYPE_CHECKING:
    import pathlib

    from pseudocoreset.data import Split

__all__ = [
    "ARRAYS_FILE",
    "GROUPS",
    "RECORD_FILE",
    "SINGLE_ARRAYS",
    "check_posterior_record",
    "flatten_groups",
    "library_versions",
    "record_of",
    "restored_split",
    "split_arrays",
]

SCHEMA = 1
GROUPS = ("draws", "unconstrained", "sample_stats")
SINGLE_ARRAYS = ("function_values", "log_likelihood")
ARRAYS_FILE = "posterior.safetensors"
RECORD_FILE = "posterior.json"
RECORD_FIELDS = {
    "schema": VERSION,
    "preprocessing": maybe(RECORD),
    "metadata": RECORD,
    "run": maybe(RECORD),
}
_NOT_NEGATIVE = Field("a number, 0 or more", lambda value: NUMBER.holds(value) and value >= 0)


def _are_positive(value: Any) -> bool:
    return all(map(_are_positive, value)) if isinstance(value, list) else POSITIVE.holds(value)


METADATA_FIELDS = {
    name: optional(field)
    for name, field in {
        "model": TEXT,
        "kernel": TEXT,
        "temperature": POSITIVE,
        "num_chains": POSITIVE_COUNT,
        "num_warmup": COUNT,
        "num_samples": POSITIVE_COUNT,
        "thinning": POSITIVE_COUNT,
        "num_data": COUNT,
        "total_weight": _NOT_NEGATIVE,
        "batch_size": maybe(POSITIVE_COUNT),
        "augment": maybe(TEXT),
        "step_size": Field("a positive number, or a list of them", _are_positive),
        "options": RECORD,
        "preprocessing": maybe(RECORD),
        "key": RECORD,
        "versions": every(TEXT),
        "seconds": every(_NOT_NEGATIVE),
    }.items()
}
KEY_FIELDS = {"implementation": TEXT, "data": listing(COUNT)}


def check_posterior_record(record: Any, place: pathlib.Path) -> dict[str, Any]:
    """The record of a posterior, whatever else was read from ``place`` refused.

    Raises:
        CorruptFileError: if it is no such record.
        ValueError: if a newer version of this package wrote it.
    """
    record = check_record(record, {"schema": VERSION}, place)
    if record["schema"] > SCHEMA:
        raise ValueError(
            f"{place.parent} has schema {record['schema']}, this version of pseudocoreset reads up to {SCHEMA}; "
            "upgrade it"
        )
    check_record(record, RECORD_FIELDS, place)
    metadata = check_record(record["metadata"], METADATA_FIELDS, f"{place}, metadata")
    if "key" in metadata:
        check_record(metadata["key"], KEY_FIELDS, f"{place}, key")
    if "seconds" in metadata:
        check_record(metadata["seconds"], {"total": NUMBER}, f"{place}, seconds")
    if "total_weight" in metadata:
        check_record(metadata, {"num_data": COUNT}, f"{place}, metadata")
    return record


def record_of(metadata: dict[str, Any], predict_on: Split | None, run: dict[str, Any] | None = None) -> dict[str, Any]:
    """What stands beside the arrays in a file; ``run`` identifies what ``sample`` writes by itself."""
    return {
        "schema": SCHEMA,
        "preprocessing": None if predict_on is None else _split_metadata(predict_on),
        "metadata": metadata,
        "run": run,
    }


def restored_split(arrays: dict[str, np.ndarray], parts: dict[str, np.ndarray], metadata: Any) -> Split | None:
    """The split whose arrays and preprocessing were read from a file; None where there is none."""
    if not arrays:
        return None
    from pseudocoreset.data import Preprocessing, Split

    layout = None if (metadata or {}).get("layout") is None else InputLayout.from_metadata(metadata["layout"])
    rest = {name: value for name, value in metadata.items() if name != "layout"}
    return Split(arrays["raw"], arrays["y"], Preprocessing.from_parts(parts, rest), layout)


def _split_metadata(split: Split) -> dict[str, Any]:
    """How the inputs of a split are preprocessed and laid out; without a layout what versions before it wrote."""
    layout = {} if split.layout is None else {"layout": split.layout.metadata()}
    return split.preprocessing.metadata() | layout


def split_arrays(split: Split) -> dict[str, np.ndarray]:
    """The arrays of a split, by the names they have in a file."""
    parts = {f"preprocessing/{name}": array for name, array in split.preprocessing.arrays().items()}
    return {"predict_on/raw": split.raw[:], "predict_on/y": split.y, **parts}


def flatten_groups(content: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of the fields of a posterior by one name each, ``group/site`` or the field's; without None."""
    flat: dict[str, Any] = {}
    for field, value in content.items():
        if isinstance(value, Mapping):
            flat |= {f"{field}/{name}": leaf for name, leaf in value.items()}
        elif value is not None:
            flat[field] = value
    return flat


def library_versions() -> dict[str, str]:
    """Versions of what the draws depend on."""
    from pseudocoreset import __version__

    names = ("jax", "jaxlib", "numpyro", "blackjax", "numpy")
    return {"pseudocoreset": __version__, **{name: _version(name) for name in names}}


_version = functools.cache(importlib.metadata.version)  # each looks through the files of all that is installed
