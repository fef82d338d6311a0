# What a developer types. Needs make and Python 3.11 or newer; everything else is put into $(VENV).

VENV ?= .venv
DEVICES ?= 25
ARGS ?=
MINUTES ?= 60
# Test processes side by side. Twice two cores, as many tests wait for a server or a clock.
JOBS ?= 4

# A Python of your choice: make run PYTHON=/opt/python3.12/bin/python3
PYTHON ?=
PYTHONS := $(if $(PYTHON),$(PYTHON),python3.11 python3 python3.12 python3.13 python3.14)

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --no-input
# No uv.lock: it would carry the address of whichever package index it was made with. The hashed requirement
# files hold the same pins for pip, without an address.
COMPILE := $(VENV)/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links --quiet

.DEFAULT_GOAL := help
.PHONY: help run test check format bench soak torture timescale lock clean

help:
	@echo "make run     start the bridge with $(DEVICES) simulated devices (DEVICES=100 for more)"
	@echo "make test    run the tests, $(JOBS) at a time (ARGS='-k writer -x' goes to pytest; JOBS=0 for one process)"
	@echo "make check   lint, formatting, types, imports, Dockerfile, compose file"
	@echo "make format  sort imports and format the code"
	@echo "make bench   measure against Mosquitto (ARGS=--quick for a short run; ARGS=\"devices sent\": lists of a million)"
	@echo "make torture try to break the promises, for an hour; ends with a table (MINUTES=20 for less)"
	@echo "make soak    ten thousand devices for ten minutes: is memory flat? (ARGS='--seconds 60' for less)"
	@echo "make timescale  run PostgreSQL's tests on a server that has TimescaleDB (docs/postgresql.md)"
	@echo "make lock    make the lock files anew from pyproject.toml (ARGS=--upgrade for newer versions)"
	@echo "make clean   remove the environment and the caches; data/ stays"

# exec: Ctrl-C then reaches the bridge alone, and make has only its exit code to tell.
run: $(VENV)/.runtime
	@exec $(VENV)/bin/mqtt-bridge serve --simulate $(DEVICES) --summary $(ARGS)

test: $(VENV)/.dev
	@exec $(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/hadolint docker/Dockerfile
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix --select I .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.dev
	@exec $(VENV)/bin/python -m tests.bench.run $(ARGS)

# A single test may take long here: the limit that shows where one hangs is lifted.
torture: $(VENV)/.dev
	@exec $(VENV)/bin/python -m pytest tests/faults --torture --torture-minutes $(MINUTES) -o faulthandler_timeout=1800 $(ARGS)

soak: $(VENV)/.dev
	@exec $(VENV)/bin/python -m tests.bench.soak $(ARGS)

# -x: where TimescaleDB is not installed, once is enough.
timescale: $(VENV)/.dev
	@exec $(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal tests/integration tests/faults --timescaledb -x $(ARGS)

lock: $(VENV)/.dev
	$(COMPILE) $(ARGS) --output-file requirements.lock pyproject.toml
	$(COMPILE) $(ARGS) --output-file requirements-build.lock --constraint requirements.lock --group build
	$(COMPILE) $(ARGS) --output-file requirements-dev.lock --constraint requirements.lock \
		--constraint requirements-build.lock --group dev pyproject.toml

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, in steps that are repeated only when what they are made from has changed.
$(VENV)/.python:
	@python=; for name in $(PYTHONS); do \
		if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "No Python 3.11 or newer among: $(PYTHONS). Install one, or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi; \
	if ! $$python -c 'import venv, ensurepip' 2>/dev/null; then \
		echo "$$python cannot make virtual environments: its venv or ensurepip module is missing." >&2; \
		echo "On Debian and Ubuntu: apt install python3-venv" >&2; \
		exit 1; \
	fi; \
	echo "Building $(VENV) with $$($$python --version)"; \
	$$python -m venv --clear $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.python pyproject.toml requirements.lock requirements-build.lock
	@echo "Installing what the bridge needs"
	@$(PIP) install --quiet --require-hashes -r requirements.lock -r requirements-build.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	@echo "Installing what the tests and checks need"
	@$(PIP) install --quiet --require-hashes -r requirements-dev.lock
	@touch $@
