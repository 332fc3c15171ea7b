# Only Python >= 3.11 and make are needed; everything else is installed into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
PROJECTS := $(sort $(wildcard packages/*/pyproject.toml plugins/*/pyproject.toml))
ROOMS := $(patsubst %/pyproject.toml,%,$(PROJECTS))
SOURCES := $(wildcard packages/*/src plugins/*/src plugins/*/saev_*.py)
CODE := packages plugins tests benchmarks $(wildcard scripts)

.PHONY: help setup test lint fix types docs bench demo clean

help: ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(STAMP) ## install everything into .venv; does nothing when nothing changed

$(STAMP): constraints.txt pyproject.toml $(PROJECTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	$(BIN)/python -m pip install --quiet -c constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt --group dev $(foreach room,$(ROOMS),-e $(room)) 'saev-core[all]'
	@./.ci/browser
	@touch $@

test: setup lint types docs ## everything that must hold before a change goes in
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

lint: setup ## style, and the dependency rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy $(SOURCES)

fix: setup ## put right what a machine can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m saev_core.cli.reference docs

docs: setup ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup ## measure, as ratios against floors taken in the same run
	for f in benchmarks/*.py; do echo "== $$f"; $(BIN)/python $$f; done

demo: setup ## two runs, each ending with its report: shapes with known truth, and real photographs
	$(BIN)/saev run
	$(BIN)/saev run --model dinov2-focus --dataset photos

clean: ## remove what was built, and .venv
	rm -rf $(VENV) site dist build .mypy_cache .ruff_cache .pytest_cache
