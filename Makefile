# The two commands of the README are `make report` and `make test`. Both set up a virtual environment of their own first.
#
#   PYTHON=python3.12           which Python builds the environment (3.11 to 3.13)
#   VENV=.venv                  where it lies
#   DRIFT_CACHE=...             where checkpoints lie (default: the user's cache folder)
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                               Linux without a GPU: the CPU build of torch, 2 GB less to download
#   PRESET=default              what `make sweep` runs

PYTHON ?= python3
VENV ?= .venv
PRESET ?= default
TORCH_INDEX ?=
SWEEP ?= data/sweeps/default
RETRIEVAL ?= data/sweeps/retrieval
REPORT ?= reports/local/default
EVIDENCE := data/evidence/deep

BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.drift-installed
PIP_FLAGS := --disable-pip-version-check --no-compile -q
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# Some container images have Python keep no bytecode: then every process, and every notebook's kernel, compiles all that it
# imports, some 6 seconds of processor time each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup report sweep test pytest test-models test-cpus fuzz mutants lint format lab clean distclean
.DEFAULT_GOAL := help

help:
	@echo "make report               three checkpoints, the sweeps default and retrieval, the report (in $(REPORT))"
	@echo "make test                 linter, types, tests"
	@echo "make test-models          every causal language model of transformers, tiny: writes docs/models.md"
	@echo "make test-cpus            the numerical tests under every instruction set that this CPU has"
	@echo "make lab                  JupyterLab on notebooks/"
	@echo "make sweep PRESET=quick   one sweep (presets: quick, default, retrieval, deep, paper)"
	@echo "make fuzz                 100,000 inputs that nobody meant, over every format that comes from outside"
	@echo "make mutants              would the tests notice? a sample of mutants of the numerical files, by mutmut"
	@echo "make lint | format        ruff, mypy, import-linter | ruff, rewriting files"
	@echo "make clean | distclean    local reports and tool caches | the virtual environment as well"

# The interpreter is checked first, so that a wrong one is one line and not a page of resolver output.
$(PY):
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "drift: no '$(PYTHON)' on this machine; install Python 3.11 to 3.13, or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "drift: '$(PYTHON)' is $$($(PYTHON) -V 2>&1); drift needs Python 3.11 to 3.13: make PYTHON=python3.12" >&2; exit 1; }
	@echo "drift: creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "drift: could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }

# The checkpoints named in PREFETCH come down while pip installs: the downloader needs nothing but the standard library.
# What it does not manage here, `fetch` does again later, and says what was wrong.
$(STAMP): pyproject.toml constraints.txt | $(PY)
	@echo "drift: installing pinned dependencies into $(VENV) (a few minutes, once)"
	@if [ -n "$(PREFETCH)" ]; then $(PY) -m drift.checkpoints download $(PREFETCH) >$(VENV)/prefetch.log 2>&1 & fi; \
	  $(PY) -m pip install $(PIP_FLAGS) $(INDEX) -c constraints.txt -e '.[test]' || { \
	    echo "drift: the installation failed; without a network nothing can be installed, behind a mirror set PIP_INDEX_URL" >&2; \
	    wait; exit 1; }; \
	  wait
	@touch $@

setup: $(STAMP)

report: PREFETCH := --all
report: $(STAMP)
	@$(PY) -m drift.checkpoints fetch --all
	@$(PY) -m drift.sweep default --jobs auto --out $(SWEEP)
	@$(PY) -m drift.sweep retrieval --jobs auto --out $(RETRIEVAL)
	@$(PY) -m drift.report $(SWEEP) --evidence $(EVIDENCE) --evidence $(RETRIEVAL) --jobs auto --out $(REPORT)
	@$(PY) -m drift.verify $(EVIDENCE) --sample 2 || test $$? -eq 3
	@echo "drift: the report lies in $(abspath $(REPORT)):"
	@ls -1 $(abspath $(REPORT))/*.html

sweep: $(STAMP)
	@$(PY) -m drift.sweep $(PRESET) --jobs auto --out data/sweeps/$(notdir $(basename $(PRESET)))

test: PREFETCH := smollm2-135m-instruct
test: $(STAMP)
	@$(MAKE) --no-print-directory -j 2 lint pytest

# Types are checked on one core, for a minute: the tests need not wait for them.
pytest: $(STAMP)
	@$(PY) -m drift.checkpoints fetch smollm2-135m-instruct
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Some ten minutes of a processor; MODELS="gpt2 bloom" walks these alone, and writes nothing.
MODELS ?=
test-models: $(STAMP)
	@OMP_NUM_THREADS=1 PYTHONPATH=. $(PY) tests/architectures.py $(if $(MODELS),$(MODELS),--out docs/models.md)

# Logs in build/cpus, figures in bench/results/cpus.json; about half an hour on two cores.
test-cpus: PREFETCH := smollm2-135m-instruct
test-cpus: $(STAMP)
	@$(PY) -m drift.checkpoints fetch smollm2-135m-instruct
	@$(PY) bench/cpus.py

# Tens of minutes; FUZZ_FLAGS="--inputs 5000 --formats yaml,csv" takes one.
FUZZ_FLAGS ?=
fuzz: $(STAMP)
	@$(PY) bench/fuzz.py $(FUZZ_FLAGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache --no-logo

# Hours of two cores; MUTANTS_FLAGS="--sample 40 --nearest-only" takes minutes.
MUTANTS_FLAGS ?=
mutants: $(STAMP)
	@$(PY) -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[mutants]'
	@$(PY) bench/mutants.py $(MUTANTS_FLAGS)

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lab: $(STAMP)
	@$(BIN)/jupyter lab notebooks

# Sweeps may have taken hours: data/sweeps is never deleted from here.
clean:
	rm -rf reports/local build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

distclean: clean
	rm -rf $(VENV)
