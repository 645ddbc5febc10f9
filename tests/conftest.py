"""What all tests share."""

import os
from pathlib import Path

# Before the first import of JAX, so that two workers on one GPU do not each take most of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of prepared public datasets beside the checkout; the test is skipped where there is none."""
    folder = Path(os.environ.get("PSEUDOCORESET_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; PSEUDOCORESET_SHARED_DATA names another")
    return folder
