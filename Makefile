# make reproduce   install, then run the whole pipeline; the report is reports/index.html
# make test        install, then lint, type-check and test
# make setup       create .venv and install requirements.txt into it
# make lint        ruff and mypy
# make benchmark   the pytest-benchmark measurements (no pass or fail)
# make soak        50 kills of the stages at random moments; ends in the bytes of an undisturbed run
# make fuzz        200 hostile inputs, each to be refused in a line
# make prune       remove finished trainings of settings that are no longer in params.yaml
# make clean       remove what the pipeline and the tools generated; keeps .venv

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
INSTALLED := $(VENV)/.installed
# The stages are called as "python -m ..." and have to find this environment's python.
export PATH := $(BIN):$(PATH)

.PHONY: reproduce test setup lint benchmark soak fuzz prune clean help

help:
	@sed -n '/^# make/s/^# //p' Makefile

reproduce: setup
	@echo "== running the pipeline (dvc repro); finished stages are not run again"
	@dvc repro
	@echo "== done: open reports/index.html"

test: lint
	@echo "== tests"
	@OMP_NUM_THREADS=1 python -m pytest -q -n 2 --dist worksteal --ignore tests/benchmarks tests

setup: $(INSTALLED)

$(INSTALLED): requirements.txt
	@echo "== creating $(VENV) and installing requirements.txt (some gigabytes, minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d; set PYTHON=..." % sys.version_info[:2])'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

lint: setup
	@echo "== ruff"
	@ruff check --quiet .
	@ruff format --check --quiet .
	@echo "== mypy"
	@mypy

benchmark: setup
	@python -m pytest tests/benchmarks --benchmark-only

soak: setup
	@PYTHONPATH=.:tests OMP_NUM_THREADS=1 python tests/soak.py --kills 50

fuzz: setup
	@PYTHONPATH=.:tests OMP_NUM_THREADS=1 python tests/fuzzing.py --inputs 200

prune:
	@echo "== removing trainings of earlier settings"
	@rm -rf results/*/train/*/earlier

clean:
	@echo "== removing generated data, results, reports and caches (not .venv, results/published, results/reference)"
	@find results -mindepth 1 -maxdepth 1 ! -name published ! -name reference -exec rm -rf {} +
	@rm -rf data/prepared reports/tables reports/figures reports/index.html .cache \
		.dvc/cache .dvc/tmp .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
