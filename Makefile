# `make demo` and `make test` work from a bare Python 3.11 and make: each sets up its own environment first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CHECKPOINTS := organisms/checkpoints
DEMO := runs/demo

.PHONY: env demo test test-slow check bench organisms validation clean

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $@

demo: env  ## the main job: is the answer detached from the chain, in each shipped variant?
	$(BIN)/fracture study --base $(CHECKPOINTS)/base \
	  --variant sham=$(CHECKPOINTS)/sham --variant dose_0.5=$(CHECKPOINTS)/dose_0.5 \
	  --variant dose_1=$(CHECKPOINTS)/dose_1 --variant collapsed=$(CHECKPOINTS)/collapsed \
	  --prompts organisms/prompts/agreeing.jsonl --max-prompts 100 --patch-prompts 32 --verifier arithmetic:10 \
	  --out $(DEMO) --overwrite

test: env  ## all tests, a file at a time on each core
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: env  ## full simulations of the intervals and tests, about a minute more
	$(BIN)/python -m pytest -m slow

check: env  ## lint, format, types, import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: env  ## speed against a named alternative, results checked equal
	$(BIN)/python -m benchmarks.spliced_cells
	$(BIN)/python -m benchmarks.patching
	$(BIN)/python -m benchmarks.capture
	$(BIN)/python -m benchmarks.knockout
	$(BIN)/python -m benchmarks.probes
	$(BIN)/python -m benchmarks.sae
	$(BIN)/python -m benchmarks.startup

organisms: env  ## retrain every organism at three seeds (four to five hours on two cores; stopped, it goes on); seed 0 is what is shipped
	for seed in 0 1 2; do $(BIN)/fracture organisms train all --seed $$seed --out runs/organisms/seed_$$seed || exit 1; done
	$(BIN)/fracture organisms cards runs/organisms/seed_0 runs/organisms/seed_1 runs/organisms/seed_2

validation: env  ## every measure against the shipped models, whose fracture is known
	$(BIN)/fracture validate --quick --jobs 2 --out runs/validation

clean:
	rm -rf $(VENV) runs
