# Two commands set everything up on a machine with Python 3.11 or newer: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Threads that wait without spinning, for machines that do other work as well.
export OMP_WAIT_POLICY ?= passive
# Tests run in so many processes, each with one thread.
WORKERS ?= 2

.PHONY: demo test lint clean

demo: $(VENV)/installed
	$(BIN)/neurodl demo

test: $(VENV)/installed
	$(BIN)/ruff check neurodl tests
	$(BIN)/ruff format --check --quiet neurodl tests
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --durations 20

lint: $(VENV)/installed
	$(BIN)/ruff check --fix neurodl tests
	$(BIN)/ruff format neurodl tests
	$(BIN)/mypy

# The stamp is written last, so an installation that broke off is done again.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "neurodl needs Python 3.11 or newer; name it: make demo PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV)
