# Each target sets up what it needs: a stamp on pyproject.toml and constraints.txt says what is installed.
PYTHON3 ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALL := $(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
FOR_BENCH := $(VENV)/.installed-for-bench
FOR_TEST := $(VENV)/.installed-for-test
TOUR := runs/tour

.PHONY: help bench test check report clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

bench: $(FOR_BENCH) ## install, take the tour (at most ten minutes on two cores), make the report
	$(PYTHON) bench.py experiment=tour
	$(PYTHON) bench.py experiment=tour_embedding name=tour
	$(PYTHON) bench.py experiment=tour_finetuning name=tour
	$(PYTHON) bench.py experiment=toy_trace name=tour
	$(PYTHON) bench.py experiment=layer_memory name=tour
	$(PYTHON) -m reports $(TOUR)

test: $(FOR_TEST) check ## install, lint, types, tests
	$(PYTHON) -m pytest

check: $(FOR_TEST) ## lint and types alone
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -m mypy bench.py

report: $(FOR_BENCH) ## rebuild the report of the tour, or of RUN=runs/NAME
	$(PYTHON) -m reports $(or $(RUN),$(TOUR))

clean: ## remove the environment and the caches; runs stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache dist

$(PYTHON):
	$(PYTHON3) -m venv $(VENV)

$(FOR_BENCH): $(PYTHON) pyproject.toml constraints.txt
	$(INSTALL) --editable .
	touch $@

$(FOR_TEST): $(PYTHON) pyproject.toml constraints.txt
	$(INSTALL) --editable '.[test,peers]'
	touch $@ $(FOR_BENCH)
