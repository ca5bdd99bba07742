# make run    the main job: phantom → CNN → features → heads → tables
# make test   the test suite
# make docs   the documentation as a site, its links checked
# make gpu-compile   every program of a GPU run that is not on record, compiled for a GPU that need not be there
#
# Each makes the virtual environment that it needs, once, and again when its requirements change.
# Another Python: make test PYTHON=python3.12

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first interpreter that is new enough and able to make a virtual environment.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
  "$$p" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
  && { echo "$$p"; break; }; done)
PYTHON_VERSION := $(if $(PYTHON),$(shell \
  "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null))

CONFIG ?= toeplitz_d1
WORKDIR ?= runs/$(CONFIG)
DATA_DIR ?= runs/data
ARGS ?=
REQUIREMENTS ?= requirements.txt
PYTEST_ARGS ?=
WORKERS ?= 2
# Compiling for a GPU: 5 GB of wheels, and Python 3.12 for the JAX that has the kernels.
GPU_VENV ?= .venv-gpu
GPU_PYTHON ?= python3.12

# A stamp carries the Python version, so that choosing another Python makes the environment anew.
GPU_READY = $(GPU_VENV)/.ready
RUN_READY = .venv/.ready-$(PYTHON_VERSION)-$(basename $(REQUIREMENTS))
DEV_READY = .venv-dev/.ready-$(PYTHON_VERSION)
DOCS_READY = .venv-docs/.ready-$(PYTHON_VERSION)
INSTALL = bin/pip install --quiet --disable-pip-version-check --no-input

# Tests start many processes, which find modules compiled, also where the caller keeps none.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test test-slow docs gpu-compile faults lint format clean distclean python

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo "  Variables: PYTHON, CONFIG=$(CONFIG), WORKDIR=$(WORKDIR), DATA_DIR=$(DATA_DIR), ARGS, REQUIREMENTS, PYTEST_ARGS"

run: $(RUN_READY)  ## run one configuration end to end (CONFIG=toeplitz_d1, ARGS='--config.x=y')
	.venv/bin/python -m rcm_jax.main --config=configs/$(CONFIG).py --workdir=$(WORKDIR) \
	  --config.data.data_dir=$(DATA_DIR) $(ARGS)

# Most of a test's time is compiling. Without most optimizations, and with XLA's older way of writing
# fused loops, which goes without MLIR, most of that falls away.
FAST_COMPILE = --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters --xla_cpu_parallel_codegen_split_count=1

test: $(DEV_READY)  ## run the tests (PYTEST_ARGS='-k toeplitz')
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 XLA_FLAGS="$(FAST_COMPILE) $${XLA_FLAGS:-}" \
	  .venv-dev/bin/python -m pytest -n $(WORKERS) --dist loadfile -m 'not slow' $(PYTEST_ARGS)

test-slow: $(DEV_READY)  ## run the rest: longer ones, whole runs, notebooks, the wheel; and the kernels as users have them
	.venv-dev/bin/python -m pytest -n $(WORKERS) --dist loadfile -m 'slow or kernels' $(PYTEST_ARGS)

docs: $(DOCS_READY)  ## build the documentation into build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

gpu-compile: $(GPU_READY)  ## compile the programs of a GPU run that are not on record for an H100; no GPU is needed
	$(GPU_VENV)/bin/python -m benchmarks.gpu_compile --new --out=benchmarks/results/gpu $(ARGS)
	JAX_PLATFORMS=cpu $(GPU_VENV)/bin/python -m pytest -n0 tests/gpu_compile_test.py tests/gru_test.py \
	  tests/feedback_test.py $(PYTEST_ARGS)

faults: $(DEV_READY)  ## kill, starve and corrupt the main job; about half an hour
	.venv-dev/bin/python -m pytest -n0 -v -s tests/faults.py $(PYTEST_ARGS)

lint: $(DEV_READY)  ## check style
	.venv-dev/bin/ruff check .
	.venv-dev/bin/ruff format --check .

format: $(DEV_READY)  ## mend style
	.venv-dev/bin/ruff check --fix .
	.venv-dev/bin/ruff format .

clean:  ## remove what tests and builds leave behind
	rm -rf .cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean  ## the same, and the virtual environments; runs/ stays
	rm -rf .venv .venv-dev .venv-docs .venv-gpu

$(RUN_READY): $(REQUIREMENTS) requirements.txt | python
	@echo "Installing $(REQUIREMENTS) into .venv (Python $(PYTHON_VERSION), about a minute)"
	@"$(PYTHON)" -m venv --clear .venv
	@.venv/$(INSTALL) -r $(REQUIREMENTS)
	@touch $@

$(DEV_READY): requirements-dev.txt requirements.txt | python
	@echo "Installing requirements-dev.txt into .venv-dev (Python $(PYTHON_VERSION), about a minute)"
	@"$(PYTHON)" -m venv --clear .venv-dev
	@.venv-dev/$(INSTALL) -r requirements-dev.txt
	@touch $@

$(DOCS_READY): requirements-docs.txt | python
	@echo "Installing requirements-docs.txt into .venv-docs (Python $(PYTHON_VERSION), some seconds)"
	@"$(PYTHON)" -m venv --clear .venv-docs
	@.venv-docs/$(INSTALL) -r requirements-docs.txt
	@touch $@

$(GPU_READY): requirements-cuda.txt requirements-dev.txt requirements.txt
	@echo "Installing requirements-cuda.txt and requirements-dev.txt into $(GPU_VENV) (5 GB, some minutes)"
	@"$(GPU_PYTHON)" -m venv --clear $(GPU_VENV)
	@$(GPU_VENV)/$(INSTALL) -r requirements-cuda.txt -r requirements-dev.txt
	@touch $@

python:
	@"$(PYTHON)" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or later with its venv module is needed (Debian: apt install python3.11-venv);" \
	    "$(if $(PYTHON),PYTHON=$(PYTHON) is not that,none was found). Name one: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
