# make setup | demo | test | test-all | lint | format | lock
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_DATA := runs/demo-corpus
# Whole files of tests, two at a time: most wait for processes of their own.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

.PHONY: setup demo test test-all lint format lock clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Seqloom needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/python tests/data/captions.py $(DEMO_DATA)
	$(BIN)/seqloom run demo-en-de --define DATA=$(CURDIR)/$(DEMO_DATA) --workdir runs

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(PYTEST)

test-all: lint
	$(PYTEST) -m 'not gpu'

# Needs uv. A plain 'torch==2.13.0' lets a machine take the build that suits it (CPU or CUDA).
lock:
	uv pip compile pyproject.toml --extra dev --no-annotate --no-header --quiet --output-file constraints.txt
	sed -i 's/+cpu$$//' constraints.txt

clean:
	rm -rf runs .mypy_cache .ruff_cache .pytest_cache
