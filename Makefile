# make train   set up and run the embedded example
# make test    set up and run the tests of the first tier: every guarantee, in a few minutes
# make test-all      all tests but those marked slow, as continuous integration does
# make test-lowest   the same as test-all with the lowest versions that pyproject.toml allows, in an environment of its own
# make test-middle   and with a row of versions between them and the newest
# make check   lint and types
# make docs    build the documentation site in site/, with its links checked; make docs-serve shows it while you write
# make bench   measure speed and print it beside the last figures
# make format  rewrite the files as ruff formats them

PYTHON ?= python3
VENV ?= .venv
LOWEST ?= .venv-lowest
MIDDLE ?= .venv-middle
LOWEST_PYTHON ?= $(shell python3.10 -c 'import sys; print(sys.executable)' 2>/dev/null || echo $(PYTHON))
# A worker for each core; `make test WORKERS= ARGS=...` runs a few tests in one process.
WORKERS ?= -n $(shell nproc 2>/dev/null || sysctl -n hw.ncpu) --dist worksteal
ALL := -m "not slow"
BIN := $(VENV)/bin
.PHONY: train test test-all test-lowest test-middle check docs docs-serve bench format clean

train: $(VENV)/train.stamp
	@echo "Fine-tunes MiniLM on BBC News: some four minutes on two cores."
	$(BIN)/python train.py $(ARGS)

test: $(VENV)/test.stamp
	@echo "Runs the tests of the first tier: some four minutes on two cores."
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-all: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) $(ALL) $(ARGS)

# Old releases use deprecated parts of their own dependencies.
test-lowest: $(LOWEST)/test.stamp
test-middle: $(MIDDLE)/test.stamp
test-lowest test-middle:
	OMP_NUM_THREADS=1 $(<D)/bin/python -m pytest \
		$(WORKERS) $(ALL) -W ignore::DeprecationWarning -W ignore::pytest.PytestUnraisableExceptionWarning $(ARGS)

bench: $(VENV)/train.stamp
	$(BIN)/python -m benchmarks.speed $(ARGS)

check: $(VENV)/check.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The variable silences an announcement about another program.
docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

docs-serve: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve $(ARGS)

format: $(VENV)/check.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(LOWEST) $(MIDDLE) dist build site .pytest_cache .ruff_cache .mypy_cache

$(VENV)/train.stamp: pyproject.toml
	@echo "Installs packages into $(VENV), once: a minute or more, by the speed of the network."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/test.stamp: pyproject.toml
	@echo "Installs packages into $(VENV), once: a minute or more, by the speed of the network."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

$(LOWEST)/test.stamp: PYTHON := $(LOWEST_PYTHON)
$(LOWEST)/test.stamp: VERSIONS := --resolution lowest-direct
$(MIDDLE)/test.stamp: VERSIONS := 'torch==2.8.*' 'transformers==5.10.*'
$(LOWEST)/test.stamp $(MIDDLE)/test.stamp: pyproject.toml
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet uv
	$(@D)/bin/uv pip install --python $(@D)/bin/python --editable '.[test-lowest]' $(VERSIONS)
	touch $@

$(VENV)/docs.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

$(VENV)/check.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
