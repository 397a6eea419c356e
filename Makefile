# make demo       install into .venv, then run the whole chain on 1,797 scanned digits for three runtimes
# make test       lint, types and the quick tests: what CI runs
# make test-full  all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DELETE_ON_ERROR:
.PHONY: demo test test-full lint clean

demo: $(STAMP)
	$(BIN)/edgeft run bench/recipes/demo.toml

test: lint
	$(BIN)/pytest -m "not slow" -n 2

test-full: lint
	$(BIN)/pytest -n 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Touched last, so that an installation that broke off is done again; editable, so that code changes need none.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $@

# Leaves runs/ alone: `edgeft clean` knows which parts of it are needed.
clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
