# `make help` lists the targets. Everything is installed in .venv; only `make bootstrap` installs anything outside of it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
SEED ?= 1
MINUTES ?=
ROUNDS ?= 5
PROCESSES ?= 4
# tests with deadlines, which mostly wait: they run after the others, because a busy core could make them red
TIMED := tests/faults tests/e2e/test_centrifuge_python.py
# tests that only compute, without deadlines: they run at the same time as all others, with a low priority
COMPUTING := tests/e2e/test_deploy_lock.py tests/e2e/test_deploy_files.py tests/unit/presence/test_rate_exchange.py
TESTS = $(BIN)/python -m pytest
SHARED = $(TESTS) --dist loadfile --no-loadscope-reorder --durations 20 --numprocesses

.PHONY: help install bootstrap demo test test-all lint format check bench faults attack chaos soak roll mutations clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## install the project and its tools in .venv (again only when what is built or installed changed)

$(STAMP): pyproject.toml setup.py gateway/connection/native/_sends.c clients/python/pyproject.toml
	@scripts/make-venv $(VENV)
	@touch $@

bootstrap:  ## install the tests' needs other than Python (as root with apt), or list what is missing
	@scripts/bootstrap

demo: $(STAMP)  ## start a node with its own Redis and a page to play with
	@exec $(BIN)/snorky serve --demo $(ARGS)

# The tests start a thousand processes: without bytecode files, each compiles the gateway again.
test test-all: export PYTHONDONTWRITEBYTECODE :=

test: $(STAMP)  ## the first tier, in minutes: needs only Python; ARGS="-k name" for some of all tests
ifdef ARGS
	@$(BIN)/python -m pytest $(ARGS)
else
	@scripts/test-js
	@$(BIN)/python -m pytest --tier first --numprocesses 3 --dist loadfile
endif

test-all: $(STAMP) bootstrap  ## all tests, on real servers: as root, apt installs what is missing
	@# beside the others: the JavaScript tests, the soak, which waits for most of its five minutes, and those that compute;
	@# after them the tests with deadlines; last those that need all cores
	@scripts/test-js & js=$$!; \
	$(TESTS) tests/cluster/test_soak.py & soak=$$!; \
	nice -n 10 $(SHARED) 2 --timeout 1200 $(COMPUTING) & computing=$$!; \
	$(SHARED) $(PROCESSES) $(patsubst %,--ignore %,tests/cluster/test_soak.py $(COMPUTING) $(TIMED)); statuses=$$?; \
	wait $$js; statuses+=$$?; \
	wait $$soak; statuses+=$$?; \
	$(SHARED) $$(($(PROCESSES) + 1)) $(TIMED) -m "not alone"; statuses+=$$?; \
	$(TESTS) tests/faults -m alone; statuses+=$$?; \
	wait $$computing; statuses+=$$?; \
	[[ $$statuses == 000000 ]]

lint: $(STAMP)  ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted: run 'make format'"; exit 1; }
	@$(BIN)/mypy

format: $(STAMP)  ## format the code and fix what ruff can fix
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

check: lint test-all  ## what CI runs after make test

bench: $(STAMP)  ## one table: this gateway, a C loop of send(), and naive aiohttp; ARGS=--peers: beside other servers
	@$(BIN)/python -m benchmarks $(ARGS)

faults: $(STAMP) bootstrap  ## every fault of the table of promises, under load: one table; ARGS="--only kill flush"
	@$(BIN)/python -m tests.fault_lab faults --seed $(SEED) $(ARGS)

attack: $(STAMP) bootstrap  ## attack one node in every way at once: one table; ARGS="--seconds 60"
	@$(BIN)/python -m tests.fault_lab.attack $(ARGS)

chaos: $(STAMP) bootstrap  ## faults drawn at random; MINUTES=30 SEED=1
	@$(BIN)/python -m tests.fault_lab chaos --minutes $(or $(MINUTES),30) --seed $(SEED) $(ARGS)

soak: $(STAMP) bootstrap  ## hours of connects and disconnects, in which nothing may grow; MINUTES=120
	@$(BIN)/python -m tests.fault_lab soak --minutes $(or $(MINUTES),120) --seed $(SEED) $(ARGS)

roll: $(STAMP) bootstrap  ## restart all nodes behind nginx under 1,000 of our clients; ROUNDS=5
	@$(BIN)/python -m tests.fault_lab.rolling --rounds $(ROUNDS) $(ARGS)

mutations: $(STAMP) bootstrap  ## remove one guard at a time and require that its test fails; ARGS="--only canary"
	@$(BIN)/python -m tests.fault_lab.mutations $(ARGS)

clean:  ## remove the tools' files
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis benchmarks/build
	@find . -path ./$(VENV) -prune -o -name node_modules -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean  ## and .venv and node_modules
	@rm -rf $(VENV) clients/js/node_modules clients/js/types tests/sockjs/node_modules \
		tests/centrifuge_js/node_modules tests/pusher_js/node_modules tests/js_package/node_modules
