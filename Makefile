# `make test` and `make demo` work in a fresh clone: they make .venv first, and find it ready the next time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# What `make oldest` runs: each door once, and the models, kernels and files behind it.
CORE := tests/fitting/test_fitting.py tests/test_cli.py tests/test_coreset.py tests/models/test_model.py tests/inference/test_sampling.py tests/data/test_loading.py

.DEFAULT_GOAL := help
.PHONY: help test oldest newest demo bench lint clean

help:
	@echo 'make test    run the tests (a few minutes)'
	@echo 'make oldest  run the core of the tests with the oldest packages that pyproject.toml allows'
	@echo 'make newest  run the tests with the newest packages that there are for $(PYTHON)'
	@echo 'make demo    run the demonstration'
	@echo 'make bench   time and memory of this machine, into bench/ (an hour, on a quiet machine)'
	@echo 'make lint    check style and types'
	@echo 'make clean   remove what was built, $(VENV), $(VENV)-oldest and $(VENV)-newest'
	@echo 'PYTHON=...   the Python, 3.11 or newer, that $(VENV) is made with (default: $(PYTHON))'

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 -q

# A package of these versions may use what a newer one of others deprecates: that is no failure of ours.
oldest:
	'$(PYTHON)' -m venv $(VENV)-oldest
	'$(PYTHON)' .ci/oldest.py > $(VENV)-oldest/constraints.txt
	PIP_USER=0 $(VENV)-oldest/bin/python -m pip install --quiet --constraint $(VENV)-oldest/constraints.txt --editable '.[dev]'
	$(VENV)-oldest/bin/python -m pytest -n 2 -q -W ignore::DeprecationWarning $(CORE)

# constraints.txt pins what CI has. This is what pip gives a user, and breaks when one of the packages does.
newest:
	'$(PYTHON)' -m venv $(VENV)-newest
	PIP_USER=0 $(VENV)-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'
	$(VENV)-newest/bin/python -m pytest -n 2 -q

demo: $(INSTALLED)
	$(BIN)/pseudocoreset demo

# One after the other, each a file of bench/; benchmarks/README.md says what they are. PyTorch is the yardstick of speed.py.
bench: $(INSTALLED)
	mkdir -p bench
	$(BIN)/python benchmarks/batching.py --out bench/batching.json
	$(BIN)/python benchmarks/unrolled.py --out bench/unrolled.json
	$(BIN)/python benchmarks/scaling.py --out bench/scaling.json
	$(BIN)/python benchmarks/steps.py --sizes 1 10 --out bench/steps.json
	$(BIN)/python benchmarks/memory.py --work bench/compiled --out bench/memory.json
	@if $(BIN)/python -c 'import torch' 2> /dev/null; then \
	  $(BIN)/python benchmarks/speed.py --out bench/speed.json; \
	else echo 'bench: no speed.json, which compares with PyTorch: install torch into $(VENV)' >&2; fi

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# PIP_USER in the environment or a configuration file would make pip refuse to install into an environment.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	PIP_USER=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(BIN)/python:
	@command -v '$(PYTHON)' > /dev/null || { echo 'make: there is no "$(PYTHON)"; name a Python, 3.11 or newer, with PYTHON=...' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $$('$(PYTHON)' --version 2>&1) is too old, 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 1; }
	'$(PYTHON)' -m venv $(VENV)

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest bench build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
