# Everything runs in .venv, made from the pinned versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
SEED ?= 1
JOBS ?= 2
SECONDS ?= 600
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: demo test test-slow lint types contracts docs notebooks bench-faults bench-rivals bench-pipeline bench-speed bench-memory matrix fuzz fuzz-guided check clean

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch comes first and alone: a plain request for it can bring gigabytes of CUDA packages.
$(VENV)/.demo: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) -e '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) -e '.[test]'
	touch $@

# The HTML report is opened in a real browser, Debian's.
$(VENV)/.browser: $(VENV)/.made
	command -v chromium >/dev/null || (apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install chromium >/dev/null)
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) -e '.[dev]'
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) -e '.[bench]'
	touch $@

$(VENV)/.fuzz: $(VENV)/.test
	$(PIP) -e '.[fuzz]'
	touch $@

demo: $(VENV)/.demo
	$(RUN) -m demo

# A process for each of JOBS cores, each with one thread: the networks of the tests are too small to share.
test: $(VENV)/.test $(VENV)/.browser
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadscope -m "not slow" --cov --cov-report=term:skip-covered

test-slow: $(VENV)/.test $(VENV)/.browser
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadscope -m slow

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.dev
	$(VENV)/bin/mypy

contracts: $(VENV)/.dev
	$(VENV)/bin/lint-imports

docs: $(VENV)/.dev
	$(VENV)/bin/mkdocs build --strict

notebooks: $(VENV)/.test
	$(RUN) -m pytest tests/test_notebooks.py

bench-faults: $(VENV)/.bench
	$(RUN) -m benchmarks.localisation --seed $(SEED) --jobs $(JOBS)
	$(RUN) -m benchmarks.comparison --seed $(SEED)

bench-pipeline: $(VENV)/.test
	$(RUN) -m benchmarks.pipeline --seed $(SEED)

bench-rivals: $(VENV)/.bench
	$(RUN) -m benchmarks.comparison --seed $(SEED)

bench-speed: $(VENV)/.bench
	$(RUN) -m benchmarks.speed

bench-memory: $(VENV)/.test
	$(RUN) -m benchmarks.memory
	$(RUN) -m benchmarks.memory --large

# Makes environments of its own; the oldest torch brings gigabytes of CUDA packages.
matrix: $(VENV)/.made
	$(RUN) -m benchmarks.matrix

fuzz: $(VENV)/.test
	$(RUN) -m benchmarks.fuzz.run --graph 90000 --report 20000 --trace 6000 --start $(SEED)000000

fuzz-guided: $(VENV)/.fuzz
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.fuzz.guided --seconds $(SECONDS)

check: lint types contracts test docs

clean:
	rm -rf $(VENV) site demo/out benchmarks/out
