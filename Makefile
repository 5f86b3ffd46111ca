# make run: a node on this machine.  make test: everything that must hold.  make help: the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help run cluster install install-dev test lint type unit fuzz nightly lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: install ## install what is needed and start a node (data in ./data)
	@exec $(BIN)/tidegate serve

cluster: install-dev ## two nodes with Cassandra and Redis on this machine, to try (data in ./data/cluster)
	@sh deploy/test-packages.sh
	@exec $(BIN)/python -m deploy.try_cluster

install: $(VENV)/.runtime ## .venv with the node, its clients and nothing else

install-dev: $(VENV)/.dev ## .venv with what tests and benchmarks need

$(VENV)/bin/python:
	@sh deploy/make-venv.sh $(PYTHON) $(VENV)

$(VENV)/.runtime: requirements/runtime.txt pyproject.toml | $(VENV)/bin/python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/runtime.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(VENV)/bin/python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/.runtime

test: install-dev lint type unit ## lint, types and all tests

lint: install-dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

type: install-dev
	@$(BIN)/mypy

unit: install-dev
	@sh deploy/test-packages.sh
	@$(BIN)/python -m pytest

fuzz: install-dev ## fuzz the decoders for ten minutes each (FUZZ_SECONDS=n)
	@$(BIN)/python -m tests.fuzz.run --seconds $${FUZZ_SECONDS:-600}

nightly: install-dev ## hours: 2,000 simulated clusters, the larger models, fuzzing, and harm done to real clusters
	@sh deploy/test-packages.sh
	@NIGHTLY=1 $(BIN)/python -m pytest tests/simulation tests/model
	@$(BIN)/python -m tests.fuzz.run --seconds $${FUZZ_SECONDS:-600}
	@$(BIN)/tidegate torture --runs $${TORTURE_RUNS:-100} --directory data/nightly/torture
	@$(BIN)/tidegate torture --runs $${TORTURE_RUNS:-100} --cassandra-nodes 3 --directory data/nightly/torture-three
	@$(BIN)/tidegate torture --runs 3 --seconds $${SOAK_SECONDS:-600} --directory data/nightly/soak

lock: ## pin requirements anew, with hashes
	@$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --no-annotate --output-file requirements/runtime.txt pyproject.toml requirements/build.in
	@$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --no-annotate --extra cluster -c requirements/runtime.txt --output-file requirements/cluster.txt pyproject.toml requirements/build.in requirements/older-python.in
	@$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --no-annotate --extra dev --extra bench -c requirements/runtime.txt --output-file requirements/dev.txt pyproject.toml requirements/build.in requirements/older-python.in

clean: ## remove .venv and caches (never ./data)
	@rm -rf $(VENV) .mypy_cache .ruff_cache build *.egg-info
