# make demo: the whole pipeline on a small synthetic data set.   make test: the test suite.
# make docs: the documentation as a site in site/, without network once its builder is installed.
# All create .venv first when it is missing or older than the project file.

PYTHON ?= python3
OUT ?= demo-output
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test lint docs

demo: $(INSTALLED)
	$(BIN)/autounet demo --out $(OUT)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(BIN)/ruff check autounet tests benchmarks docs setup.py
	$(BIN)/ruff format --check autounet tests benchmarks docs setup.py
	$(BIN)/mypy autounet

# --strict: a broken link ends it
docs: $(INSTALLED)
	test -x $(BIN)/zensical || $(BIN)/python -m pip install -c constraints.txt -e '.[docs]'
	$(BIN)/zensical build --clean --strict

# torch first and alone, so that nothing later chooses another one
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "AutoUNet needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@
