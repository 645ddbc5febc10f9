"""The lowest version of each required package that pyproject.toml allows, as constraints of pip."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = [needed for extra, needed in project["optional-dependencies"].items() if extra != "dev"]
for requirement in sum(extras, project["dependencies"]):
    found = re.match(r"([\w.-]+)(?:\[[^\]]*\])?>=([\w.]+)(?:[^;]*)(;.*)?$", requirement)
    if found:
        print(f"{found[1]}=={found[2]}{found[3] or ''}")
