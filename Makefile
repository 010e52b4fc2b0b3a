# make demo: train the embedded model, print a before/after table.   make test: run the tests.   Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE = 1

.PHONY: demo test test-real lint types check clean

demo: $(VENV)/.installed
	$(BIN)/python -m textgen_env.agents.ppo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 -m "not slow and not heavy"

test-real: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow tests/test_real_model.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

check: lint types test

# The versions in constraints.txt are the ones that the tests last passed with.
$(VENV)/.installed: setup.cfg constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
