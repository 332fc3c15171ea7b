# Requires only Python >= 3.11 and make; everything else is installed into .venv.
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

# Environment with the libraries that benchmarks compare with, and with our packages.
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.setup-stamp
RIVALS := $(addprefix packages/,saev-core saev-datasets saev-models) $(addprefix plugins/,saev-saes saev-dinov2-focus)
# Use the environment with peers if it is installed, otherwise .venv.
BENCH = $(if $(wildcard $(PEERS_STAMP)),$(PEERS)/bin,$(BIN))/python

.PHONY: help setup test lint fix types docs bench bench-setup bench-gpu demo clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(STAMP) ## install everything into .venv; skipped when up to date

$(STAMP): constraints.txt pyproject.toml $(PROJECTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	$(BIN)/python -m pip install --quiet -c constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt --group dev $(foreach room,$(ROOMS),-e $(room)) 'saev-core[all]'
	@./.ci/browser
	@touch $@

test: setup lint types docs ## run lint, types, docs and tests: must pass before merging
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

lint: setup ## check style and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy $(SOURCES)

fix: setup ## apply automatic fixes: imports, format, generated docs
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m scripts.write_known_packages
	$(BIN)/python -m scripts.write_reference docs

docs: setup ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup ## run the benchmarks, relative to floors and peers measured in the same run
	$(BENCH) benchmarks/all.py

bench-setup: $(PEERS_STAMP) ## install the libraries that bench compares with into .venv-peers

$(PEERS_STAMP): benchmarks/peers/requirements.txt $(STAMP)
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(BIN)/uv pip install --quiet --python $(PEERS)/bin/python --no-deps -r benchmarks/peers/requirements.txt $(foreach room,$(RIVALS),-e $(room))
	cd benchmarks && OMP_NUM_THREADS=1 ../$(PEERS)/bin/python -W ignore -m peers
	@touch $@

bench-gpu: setup ## run the training step benchmarks on a CUDA device, if there is one
	$(BENCH) benchmarks/gpu.py

demo: setup ## make two runs with reports: shapes with known truth, and real photographs
	$(BIN)/saev run
	$(BIN)/saev run --model dinov2-focus --dataset photos

clean: ## remove build outputs and .venv
	rm -rf $(VENV) $(PEERS) site dist build .mypy_cache .ruff_cache .pytest_cache
