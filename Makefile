# On a fresh machine with Python >= 3.11: `make demo` runs the main job, `make test` every test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check clean

demo: $(VENV)/train.stamp
	$(BIN)/captune demo

test: $(VENV)/dev.stamp
	# Two processes with two threads each would wait for one another on two cores.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST)

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "captune needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/train.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[train]'
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[train,data,serve,bulk,heic,java,quant,zh,dev]'
	touch $@ $(VENV)/train.stamp

clean:
	rm -rf $(VENV) runs
