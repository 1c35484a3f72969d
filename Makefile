# Two commands do all the set-up: `make demo` runs a swarm on this machine, `make test` the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# An ordinary index gives torch with several GB of CUDA packages; `make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu`
# takes the CPU build (200 MB) instead.
TORCH_INDEX ?=
PIP_FLAGS := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX),)

INSTALL := $(BIN)/pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e

.PHONY: demo test test-full lint bench install clean

install: $(VENV)/.installed

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[dev]'
	touch $@ $(VENV)/.demo

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[sim]'
	touch $@

# Needs less than the tests do: no triton, no linters.
demo: $(VENV)/.demo
	$(BIN)/swarm-sim local

test: install
	$(BIN)/pytest -n $${WORKERS:-auto} --dist loadfile -m 'not slow and not gpu'

test-full: install
	$(BIN)/pytest -n $${WORKERS:-auto} --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	@echo "two hops against one process, then the executor alone: about half an hour on two quiet cores;"
	@echo "the tables also go into docs/performance.md"
	$(BIN)/python benchmarks/report.py decode executor

clean:
	rm -rf $(VENV) dist build
