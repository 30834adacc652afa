# All that a developer must know: setup · demo · test · check · bench
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
NEWEST := out/newest
# Two processes, each of one thread and of whole files: on two cores the suite takes 7 minutes so, and 13 in one process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: setup demo test quick check bench figures results newest clean

setup: $(STAMP)  ## a virtual environment with everything

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,zeroshot]'
	touch $(STAMP)

demo: setup  ## prunes the model that the project ships, in every way, and shows what it costs
	$(BIN)/python scripts/demo.py --out out/demo

test: setup  ## the whole test suite
	$(PYTEST)

quick: setup  ## a developer's loop: mathematics, recorded outputs, steps, rules
	$(PYTEST) -m "not slow"

check: setup  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## speed, as ratios to the work that can't be avoided
	$(BIN)/python benchmarks/run.py

figures: setup  ## the drawings in img/
	$(BIN)/python scripts/draw_figures.py

results: demo  ## README's tables and picture; takes up what the last run left
	$(BIN)/autoprune bench benchmarks/demo.toml --out out/bench --jobs 2
	$(BIN)/python scripts/update_results.py

newest:  ## the newest transformers that pyproject.toml allows, in an environment of its own: does everything still work?
	test -x $(NEWEST)/venv/bin/python || $(PYTHON) -m venv $(NEWEST)/venv
	grep -v '^transformers' constraints.txt > $(NEWEST)/constraints.txt
	$(NEWEST)/venv/bin/python -m pip install --quiet --disable-pip-version-check -c $(NEWEST)/constraints.txt torch
	$(NEWEST)/venv/bin/python -m pip install --quiet --disable-pip-version-check -c $(NEWEST)/constraints.txt \
		--upgrade transformers -e '.[dev]'
	$(NEWEST)/venv/bin/python -m pytest tests/models tests/parity
	$(NEWEST)/venv/bin/python scripts/list_architectures.py $(NEWEST)/architectures.md

clean:
	rm -rf $(VENV) out build dist src/*.egg-info
