# `make demo` installs everything and runs the main job; `make test` installs everything and passes the tests.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

demo: $(VENV)/.installed
	$(BIN)/python tools/train_timm.py --mbj

test: $(VENV)/.installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The pages and the API reference, into build/site; any warning is an error.
docs: $(VENV)/.installed
	$(BIN)/python -m pip install -q -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict

# Changes the source in one place at a time and sees whether the tests notice: long, and no part of `make test`.
mutants: $(VENV)/.installed
	$(BIN)/python -m pip install -q -e '.[mutants]'
	$(BIN)/python tools/mutants.py $(MODULES)

# Each command block of README and docs: it parses, and what it names is there.
docs-check: $(VENV)/.installed
	$(BIN)/python tools/check_docs.py

# docs/maintainers/matrix.md anew, one environment of tox.ini after the other: hours, and some GB at a time.
matrix:
	$(PYTHON) -m venv $(VENV)-tox
	$(VENV)-tox/bin/python -m pip install -q tox
	failed=0; for name in $${ENVIRONMENT:-$$($(VENV)-tox/bin/tox -q list --no-desc)}; do $(VENV)-tox/bin/tox -e $$name || failed=1; rm -rf .tox/$$name; done; exit $$failed

# What is uploaded, in dist/: built, checked, and tested as it is unpacked. `TAG=v1.2.3` must be the version.
release: $(VENV)/.installed
	[ -z "$(TAG)" ] || [ "$(TAG)" = "v$$($(BIN)/python -c 'import mbj_plugin; print(mbj_plugin.__version__)')" ]
	$(BIN)/python -m pip install -q -e '.[release]'
	rm -rf dist build
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	mkdir -p build/sdist && tar -xzf dist/*.tar.gz -C build/sdist --strip-components=1
	cd build/sdist && $(abspath $(BIN))/python -m pytest

# fastreid's own pins cannot be met on current Python, so it comes without its dependencies.
$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e '.[timm,fastreid,report,dev]'
	$(BIN)/python -m pip install -q --no-deps fastreid==1.4.0
	touch $@

.PHONY: demo test docs mutants docs-check matrix release
