# Each target sets up what it needs: a stamp on pyproject.toml and constraints.txt says what is installed.
PYTHON3 ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALL := $(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
FOR_BENCH := $(VENV)/.installed-for-bench
FOR_TEST := $(VENV)/.installed-for-test
IN_TWO := --numprocesses 2 --dist worksteal
TOUR := runs/tour
DOCUMENTS := runs/documents
# With the tables of the five documents, whose study is a folder as anybody's may be.
REPORT := $(PYTHON) -m reports --config-dir reports/documents
# Sweeps beside experiment=documents that the documents' claims ask for.
PARTS := toy_trace layer_memory relative_memory sparse t5_memory lora lora_memory \
	documents_gain documents_blocks documents_window documents_context documents_speed documents_tuned

.PHONY: help bench documents test thorough check report clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

bench: $(FOR_BENCH) ## install, take the tour (at most ten minutes on two cores), make the report
	$(PYTHON) bench.py experiment=tour
	$(PYTHON) bench.py experiment=tour_embedding name=tour
	$(PYTHON) bench.py experiment=tour_finetuning name=tour
	$(PYTHON) bench.py experiment=toy_trace name=tour
	$(PYTHON) bench.py experiment=layer_memory name=tour
	$(REPORT) $(TOUR)

documents: $(FOR_BENCH) ## everything the documents claim (at most 45 minutes on two cores), and the report
	for part in documents $(PARTS); do \
		$(PYTHON) bench.py experiment=$$part name=documents || [ $$? -eq 2 ] || exit 1; \
	done # 2: some runs failed, and the report says which
	$(REPORT) $(DOCUMENTS)

test: $(FOR_TEST) check ## install, lint, types, tests (at most seven minutes on two cores)
	$(PYTHON) -m pytest $(IN_TWO) --durations=10

thorough: $(FOR_TEST) check ## the same tests with the whole of every table
	$(PYTHON) -m pytest $(IN_TWO) --durations=10 -m ''

check: $(FOR_TEST) ## lint and types alone
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

report: $(FOR_BENCH) ## rebuild the report of the tour, or of RUN=runs/NAME
	$(REPORT) $(or $(RUN),$(TOUR))

clean: ## remove the environment and the caches; runs stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache dist

$(PYTHON):
	$(PYTHON3) -m venv $(VENV)

$(FOR_BENCH): $(PYTHON) pyproject.toml constraints.txt
	$(INSTALL) --editable '.[all]'
	touch $@

$(FOR_TEST): $(PYTHON) pyproject.toml constraints.txt
	$(INSTALL) --editable '.[all,test,peers]'
	touch $@ $(FOR_BENCH)
