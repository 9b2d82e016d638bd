# `make demo` installs everything and runs the main job; `make test` installs everything and passes the tests.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

demo: $(VENV)/.installed
	$(BIN)/python tools/train_timm.py --mbj --compare

test: $(VENV)/.installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest

# The pages and the API reference, into build/site; any warning is an error.
docs: $(VENV)/.installed
	$(BIN)/python -m pip install -q -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict

# Changes the source in one place at a time and sees whether the tests notice: long, and no part of `make test`.
mutants: $(VENV)/.installed
	$(BIN)/python -m pip install -q -e '.[mutants]'
	$(BIN)/python tools/mutants.py $(MODULES)

# fastreid's own pins cannot be met on current Python, so it comes without its dependencies.
$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e '.[timm,fastreid,report,dev]'
	$(BIN)/python -m pip install -q --no-deps fastreid==1.4.0
	touch $@

.PHONY: demo test docs mutants
