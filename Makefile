# Every target sets up what it needs; only Python 3.11 with pip has to be there.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install run test test-slow test-latest lint audit bench picture lock clean
help:
	@echo "make run        the main job: flwr run on the digits, 10 clients  (ARGS='num-rounds=20')"
	@echo "make test       linters, types and the fast tests"
	@echo "make test-slow  the tests that take long"
	@echo "make test-latest  the Flower tests on the latest Flower, in an environment of its own"
	@echo "make audit      known weaknesses in our code and in the pinned packages"
	@echo "make bench      speed against bare loops, side by side"
	@echo "make picture    the README's figure, from new runs"
	@echo "make install    only set up .venv"

install: $(READY)

$(READY): requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "fedef needs Python 3.11; set PYTHON=/path/to/python3.11"; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

run: install
	$(BIN)/fedef run --engine flower $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2 -m "not slow" $(ARGS)

test-slow: install
	$(BIN)/pytest -m slow $(ARGS)

# The newest Flower speaks HTTP in the place of gRPC; uv and cryptography are what it pins otherwise.
LATEST := .venv-latest
LATEST_FLWR := 1.41.0
$(LATEST)/.ready: requirements.lock pyproject.toml
	"$(PYTHON)" -m venv $(LATEST)
	grep -vE '^(flwr|uv|cryptography)==' requirements.lock > $(LATEST)/requirements.txt
	$(LATEST)/bin/pip install --quiet --disable-pip-version-check \
		-r $(LATEST)/requirements.txt 'flwr[simulation]==$(LATEST_FLWR)'
	$(LATEST)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

test-latest: $(LATEST)/.ready
	$(LATEST)/bin/pytest -m "not slow" tests/flower tests/sims/test_credentials.py $(ARGS)
	$(LATEST)/bin/pytest -m slow tests/flower/test_simulation.py tests/flower/test_deployment.py $(ARGS)

# pip-audit asks the package index for advisories: a mirror may have none to tell.
audit: install
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive fedef clients strategies sims
	$(BIN)/pip-audit --requirement requirements.lock --no-deps --disable-pip

bench: install
	$(BIN)/fedef bench $(ARGS)

picture: install
	$(BIN)/python -m sims.picture $(ARGS)

# Resolves pyproject.toml anew. A local build tag of torch ("+cpu") is not part of the pin.
lock: install
	$(BIN)/pip-compile --quiet --upgrade --extra dev --extra sims --extra tensorboard --extra mlflow --strip-extras --allow-unsafe \
		--no-annotate --no-header --no-emit-index-url --no-emit-find-links \
		--no-emit-trusted-host --output-file requirements.lock pyproject.toml
	sed -i 's/^\(torch==[0-9.]*\)+.*/\1/' requirements.lock

clean:
	rm -rf $(VENV) $(LATEST) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
