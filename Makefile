# Everything a developer types. A fresh machine needs python3 (3.11 or newer) with pip, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# uv from the PATH where there is one; else it is installed into the environment it fills.
UV := $(shell if uv --version >/dev/null 2>&1; then echo uv; else echo $(BIN)/uv; fi)
# The demo's weights: random needs no download and shows the machinery, pretrained shows the sound.
WEIGHTS ?= random

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint types format bench clean lock

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(READY) ## make .venv from the lock; costs nothing the second time

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("bioembed_ray needs Python 3.11 or newer; set PYTHON=" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(BIN)/uv: | $(BIN)/python
	$(BIN)/python -m pip install --quiet uv

# Compiled once here: every process of Ray imports torch and more, and where Python may not write its
# bytecode (PYTHONDONTWRITEBYTECODE, as in many containers) each would compile all of it again.
$(READY): requirements/lock.txt pyproject.toml | $(BIN)/python $(filter $(BIN)/uv,$(UV))
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements/lock.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

# The packages whose files we write, for tests that open them. --no-deps, since perch-hoplite asks for
# an older pandas than avex does and runs with either.
$(VENV)/.peers: requirements/peers.txt $(READY)
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps -r requirements/peers.txt
	@touch $@

demo: $(READY) ## embed a made-up archive, check it, look at it (WEIGHTS=pretrained for the real models)
	$(BIN)/python -m bioembed_ray.demo $(WEIGHTS)

# Nearly half of what a Ray does is waiting, so that another one may run beside it; each is a dozen
# processes, so that many cores are no reason for many.
test: lint types $(VENV)/.peers ## lint, types and every test
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadgroup

test-fast: $(READY) ## the tests to run on every save: no Ray, nothing killed
	$(BIN)/pytest -m "not ray and not slow and not gpu and not hub" --numprocesses auto tests/unit tests/properties

lint: $(READY) ## ruff and codespell
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell $(wildcard bioembed_ray deploy jobs tests benchmarks docs *.md *.yaml Makefile)

types: $(READY) ## mypy --strict
	$(BIN)/mypy

format: $(READY) ## ruff's fixes and layout
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY) ## every script of benchmarks/; run one alone with its own arguments
	@for script in $(wildcard benchmarks/*.py); do echo "$$script"; $(BIN)/python "$$script" || exit; done

lock: | $(BIN)/python $(filter $(BIN)/uv,$(UV)) ## pin the newest versions that pyproject.toml allows
	$(UV) pip compile pyproject.toml --group dev --universal --python-version 3.11 \
		--no-emit-index-url --no-annotate --no-header --upgrade --quiet -o requirements/lock.txt

clean: ## remove what demo, tests and tools left; .venv stays
	rm -rf demo_audio demo_out dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find bioembed_ray deploy jobs tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
