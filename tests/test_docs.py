"""The pages of ``docs/`` and the README name places that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FOLDERS = "benchmarks|docs|examples|inference|models|pseudocoreset|tests"
# Where the pages tell readers to put the files of their skeletons.
NEW = {"inference/kernels/random_walk.py", "pseudocoreset/evaluation/nearest_point.py"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_places_exist(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", text)) - NEW
    assert {name for name in named if not (ROOT / name).exists()} == set()
    linked = {name.partition("#")[0] for name in re.findall(r"\]\((?!https?:)([^)]+)\)", text)} - {""}
    assert {name for name in linked if not (page.parent / name).exists()} == set()
    titles = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= titles
