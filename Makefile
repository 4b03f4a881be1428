# Two commands for everybody: `make demo` and `make test`. Each makes .venv first if it is missing or out of date, and
# needs only Python 3.11 or newer, make and a compiler. `make PYTHON=python3.12 ...` chooses another interpreter.

PYTHON ?= python3
JOBS ?= $(shell $(PYTHON) -c "import os; print(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())")
BIN := .venv/bin
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-browser check bench docs pages constraints clean

help:  ## list what can be made
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*##/:/' | awk -F': +' '{printf "make %-12s %s\n", $$1, $$2}'

demo: $(INSTALLED)  ## pretrain, fine-tune and evaluate on a made-up video set, with a report to look at (6 minutes on 2 cores, longer beside other work)
	$(BIN)/tubelet demo

test: $(INSTALLED)  ## run all tests
	$(BIN)/python -m pytest -q -n $(JOBS)

test-browser: $(INSTALLED)  ## try the page in Chromium (Debian's, installed if you are root), and its API against its description
	@command -v chromium > /dev/null || { [ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install -y chromium > /dev/null; }
	$(PIP) install -q -c constraints.txt -e '.[browser]'
	$(BIN)/python -m pytest -q -m browser tests/web

check: $(INSTALLED)  ## lint, format and type check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)  ## our speed beside what one would run today, into docs/benchmarks (QUICK=1 for a trial of 3 minutes, ONLY="decode load" for these parts)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/run.py $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

docs: $(INSTALLED)  ## build the documentation site into site/
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	$(BIN)/zensical build

pages: $(INSTALLED)  ## write the generated pages of docs/ again: help of the commands, list of modules
	$(BIN)/python docs/generate.py

# Only version numbers are kept: no local version (+cpu), no index, and none of the packages that only one kind of
# machine wants, so that pip takes the wheel that fits wherever it runs.
constraints:  ## pin every dependency again (needs uv)
	printf 'torch==2.13.0\ntorchcodec==0.13.0\n' > build-pins.txt
	uv pip compile pyproject.toml --all-extras --python-version 3.11 --constraint build-pins.txt --no-annotate --no-header -q \
	  | sed -E 's/\+[a-z0-9.]+$$//; /^(nvidia|cuda|triton)/d; /^-/d' > constraints.txt
	rm build-pins.txt

clean:  ## remove the virtual environment and everything built
	rm -rf .venv build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch comes first and alone: it is the largest download, and a failure there should say so and nothing else.
# The stamp is written last, so an interrupted installation is done again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'error: Python 3.11 or newer is needed, this is ' + sys.version.split()[0] + ': make PYTHON=python3.12 ... chooses another')"
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@
