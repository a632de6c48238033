# Every target sets up the environment first: `make train` and `make test` work in a fresh clone. `make help` lists them.
#
#   PYTHON=python3.12     the Python to make the environment with (default: python3, else the newest of 3.11 to 3.13)
#   VENV=.venv            the environment's folder
#   TORCH_INDEX=URL       a package index beside the usual one for torch, such as https://download.pytorch.org/whl/cpu
#   ARGS="..."            more arguments for the command that is run
#   TESTS=tests/...       what `make test` runs
#   TEST_PROCESSES=2      processes that share the test files; 0: none beside pytest's own

SHELL := /bin/sh
VENV ?= .venv
TESTS ?=
TEST_PROCESSES ?= 2
ARGS ?=
export PYTHON TORCH_INDEX

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow test-faults mutations bench check format clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile | expand -t 20

setup:  ## the environment in .venv; does nothing where it is current
	@python=$$(sh .ci/find_python.sh) && exec "$$python" .ci/environment.py "$(VENV)" dev

train: setup  ## the main job: a small language model learns to alliterate
	@"$(VENV)/bin/rayrlhf" train $(ARGS)

test: setup  ## the tests, but for those marked slow or faults
	@"$(VENV)/bin/python" -m pytest -m "not slow and not faults" -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(TESTS) $(ARGS)

test-slow: setup  ## the tests that take minutes each
	@"$(VENV)/bin/python" -m pytest -m slow $(TESTS) $(ARGS)

test-faults: setup  ## kills, full disks, lost objects and other faults, put into real runs: docs/faults.md
	@"$(VENV)/bin/python" -m pytest -m faults -n $(TEST_PROCESSES) --dist worksteal $(or $(TESTS),tests/faults) $(ARGS)

mutations: setup  ## wrong lines, one at a time in a copy of the code: each is to fail a test; ARGS="whitened KL" for some
	@"$(VENV)/bin/python" -m tests.mutations $(ARGS)

bench:  ## the benchmarks, one after the other, in an environment of their own
	@python=$$(sh .ci/find_python.sh) && exec "$$python" .ci/environment.py "$(VENV).bench" dev,bench
	@for script in tests/benchmarks/*.py; do echo "== $$script"; "$(VENV).bench/bin/python" "$$script" $(ARGS) || exit 1; done

check: setup  ## lint, format and types, as in CI and before a commit
	@"$(VENV)/bin/ruff" check .
	@"$(VENV)/bin/ruff" format --check .
	@"$(VENV)/bin/mypy"

format: setup  ## apply what `make check` would ask of lint and format
	@"$(VENV)/bin/ruff" check --fix .
	@"$(VENV)/bin/ruff" format .

clean:  ## remove the environment and all caches, never runs/
	@rm -rf "$(VENV)" "$(VENV).bench" build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
