# On a fresh machine with Python >= 3.11: `make demo` runs the main job, `make test` every test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# How Python runs pytest; `coverage` sets another one.
RUN := -m
EXTRAS := train,data,serve,bulk,heic,java,quant,zh,smolvlm

# The tests that depend most on the releases of other libraries; `make newest` and `make oldest` run them.
SHORT := tests/captioner tests/cli/test_preflight.py tests/decoding/test_generate.py tests/model/test_build.py \
  tests/model/test_layer_call.py tests/training/test_packing.py tests/training/test_resume.py \
  tests/apps/serving/test_captioners.py tests/apps/serving/test_choices.py tests/apps/serving/test_endpoint.py \
  tests/vlm/test_exactness.py tests/vlm/test_generation.py tests/vlm/test_files.py \
  tests/metrics/test_scorer.py tests/data/test_importers.py tests/report/test_chart.py tests/test_slides_commands.py

.PHONY: demo test coverage check docs dist newest oldest clean

demo: $(VENV)/train.stamp
	$(BIN)/captune demo

test: $(VENV)/dev.stamp
	# Two processes with two threads each would wait for one another on two cores.
	OMP_NUM_THREADS=1 $(BIN)/python $(RUN) pytest -n 2 $(PYTEST)

# Every test, and which lines and branches of captune/ they run, also in the programs that they start.
coverage: $(VENV)/dev.stamp
	$(BIN)/coverage erase
	$(MAKE) test RUN="-m coverage run -m"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, in site/. A warning, such as a broken link, is an error.
docs: $(VENV)/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# What is uploaded to the package index, in dist/: the sdist, and the wheel that is built from it.
dist: $(VENV)/dev.stamp
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

# What a plain `pip install captune` brings today. torch is the tested build, since another one takes gigabytes.
newest:
	rm -rf .venv-newest
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS),dev]'
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -n 2 $(SHORT)

# The oldest releases that the metadata allow.
oldest:
	rm -rf .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv torch==2.13.0
	echo torch==2.13.0 | .venv-oldest/bin/uv pip compile --quiet --resolution lowest-direct --override - \
	  --python .venv-oldest/bin/python $(foreach extra,$(subst $(comma), ,$(EXTRAS)),--extra $(extra)) \
	  --no-annotate --no-header pyproject.toml | grep -vE '^(nvidia|cuda|triton)' > .venv-oldest/lowest.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r .venv-oldest/lowest.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv-oldest/lowest.txt \
	  httpx hypothesis openai pytest pytest-xdist tensorboard
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	# Old releases warn of each other.
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n 2 -W default $(SHORT)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "captune needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/train.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[train]'
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[$(EXTRAS),intl,ja,ko,th,bertscore,dev,docs]'
	touch $@ $(VENV)/train.stamp

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest runs site dist

comma := ,
