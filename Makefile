# make reproduce   install, then run the whole pipeline; the report is reports/index.html
# make test        install, then lint, type-check and test
# make setup       create .venv and install requirements.txt into it
# make lint        ruff and mypy
# make recipes     100 steps of every recipe at a tenth of its size (some minutes)
# make benchmark   the pytest-benchmark measurements beside this machine's baseline (no pass or fail)
# make gpu         uses a GPU for MINUTES (9): timings, roofline, then the trainings that settle most claims
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

# What benchmarks are compared with: the first run on this machine; remove the file for a new one.
BASELINE := results/benchmarks/baseline.json
MINUTES ?= 9

.PHONY: reproduce test setup lint recipes benchmark gpu soak fuzz prune clean help

help:
	@sed -n '/^# make/s/^# //p' Makefile

reproduce: setup
	@echo "== running the pipeline (dvc repro); finished stages are not run again"
	@dvc repro
	@echo "== done: open reports/index.html"

# Three workers on two cores: a test often waits for a command that it started, or has just killed.
test: lint
	@echo "== tests"
	@OMP_NUM_THREADS=1 python -m pytest -q -n 3 --dist worksteal --ignore tests/benchmarks tests

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

recipes: setup
	@OMP_NUM_THREADS=1 python -m pytest -q -n 2 --dist worksteal -m recipes tests

benchmark: setup
	@mkdir -p $(dir $(BASELINE))
	@OMP_NUM_THREADS=1 python -m pytest -q tests/benchmarks --benchmark-only \
		--benchmark-json $(dir $(BASELINE))latest.json
	@test -f $(BASELINE) || cp $(dir $(BASELINE))latest.json $(BASELINE)
	@PYTHONPATH=. python tests/benchmarks/compare.py $(BASELINE) $(dir $(BASELINE))latest.json
	@python -m experiments.tables
	@python -m experiments.report

# Needs no DVC and installs nothing: a machine that is lent has its own torch. Two thirds of the time are
# for timings, whose rows come in order of want. Exit code 75 says that time ran out, as it should.
gpu:
	@echo "== timings and the device's limits"
	@python3 -m experiments.speed --minutes $$(awk 'BEGIN {print $(MINUTES) * 2 / 3}') || test $$? -eq 75
	@python3 -m experiments.tables
	@python3 -m experiments.report
	@echo "== trainings"
	@python3 -m experiments.prepare
	@python3 -m experiments.train --most-claims-first --minutes $$(awk 'BEGIN {print $(MINUTES) / 3}') \
		|| test $$? -eq 75

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
