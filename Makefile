# Every target sets up what it needs: a fresh machine wants only Python >= 3.11, gcc and make.
#   make demo      train a small language model, kill it half-way, watch it go on         (~3 minutes after set-up)
#   make test      the tests without the slow ones
#   make test-all  all tests
#   make check     ruff, mypy --strict, the floor test
#   make bench     speed and memory against transformers.Trainer and a hand-written loop
#
# Set-up happens once per change of pyproject.toml or constraints.txt, into ./.venv (choose the interpreter with PYTHON=).
# torch comes first and alone, in the build that your pip configuration ranks first: on Linux without a GPU point
# PIP_EXTRA_INDEX_URL at PyTorch's CPU index to save the CUDA libraries.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH := $(shell sed -n 's/^torch==.*/&/p' constraints.txt)
DEMO_FLAGS ?=

# One thread per process: results then do not depend on the number of cores, and parallel tests do not fight.
test test-all check: export OMP_NUM_THREADS = 1

.PHONY: demo test test-all check bench format clean

demo: $(VENV)/.ready-demo
	$(BIN)/onward demo $(DEMO_FLAGS)

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not slow"

test-all: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

check: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src
	$(BIN)/python -m pytest -q tests/test_floors.py

bench: $(VENV)/.ready-bench
	$(BIN)/python -m benchmarks.run

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.ready-torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "onward needs Python >= 3.11, got " + sys.version.split()[0] + "; call make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "set-up: $(TORCH)"
	@$(INSTALL) '$(TORCH)'
	@touch $@

$(VENV)/.ready-demo: $(VENV)/.ready-torch pyproject.toml
	@echo "set-up: onward and what the demo needs"
	@$(INSTALL) -e '.[hf]'
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready-torch pyproject.toml
	@echo "set-up: onward, its extras and the development tools (a few minutes)"
	@$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.ready-demo

$(VENV)/.ready-bench: $(VENV)/.ready-torch pyproject.toml
	@echo "set-up: onward and what it is measured against"
	@$(INSTALL) -e '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) build dist demo-run .pytest_cache .mypy_cache .ruff_cache
