# Each target makes .venv first, and again whenever pyproject.toml or constraints.txt has changed.
#   make demo    the whole story in one run, offline: a table, and report.html
#   make test    the tests                       make check   what a commit must pass
#   make test-extended   those that take long: every family on every engine, kills, compilers, two nodes
#   make bench   the tables of docs/performance.md, timed on this machine; make docs    the site, in site/
#   make fuzz    mutated clips, lists, configs, models, checkpoints, shards, commands, requests: CASES=5000 SEED=0
#   make audit   known faults of the pinned packages: fails where there are any, or where the data cannot be reached
#   make conformance   transformers' own common tests on merged models: TRANSFORMERS=/path for a full checkout
#   make test-install   the wheel and its extras, in fresh environments outside the checkout
#   make PYTHON=/path/to/python3.12 test         chooses the interpreter for a new .venv

.DELETE_ON_ERROR:
.PHONY: demo test test-extended check bench docs fuzz audit conformance test-install

BIN := .venv/bin
READY := .venv/.ready

demo: $(READY)
	$(BIN)/sttm demo

# Two workers of one thread each: the suite is many small models, where threads only get in each other's way.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not extended"

test-extended: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m extended

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_imports.py -q
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not extended"

# All tables but two that take longer: studies/performance.py run realised frames
bench: $(READY)
	$(BIN)/python studies/performance.py run models batches peers engines train

# What the reader of docstrings says is a warning too, of which zensical knows nothing.
docs: $(READY)
	@said=$$($(BIN)/zensical build --clean --strict 2>&1); code=$$?; echo "$$said"; \
	  test $$code -eq 0 && ! echo "$$said" | grep -q '^griffe:'

# At most an hour, however many cases; 5,000 take about ten minutes on two cores.
CASES ?= 5000
SEED ?= 0
OUT ?= $(CURDIR)/results/fuzz
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python studies/fuzz.py run --cases $(CASES) --seed $(SEED) --out $(OUT)

audit: $(READY)
	$(BIN)/python tests/audit.py

# Fetches the sdist of transformers into .cache/ the first time; nothing of it goes into the repository.
conformance: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.conformance $(if $(TRANSFORMERS),--transformers $(TRANSFORMERS))

test-install: $(READY)
	$(BIN)/python tests/install.py

# torch goes first and alone, so that nothing else can bring in another build of it; one that is already there stays.
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { \
	  for python in $(or $(PYTHON),python3 python3.11 python3.12 python3.13 python3.14); do \
	    "$$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    echo "Making .venv with $$("$$python" --version)"; exec "$$python" -m venv .venv; \
	  done; \
	  echo "sttm needs Python 3.11 or newer with its venv module; none is at" \
	       "$(or $(PYTHON),python3 or python3.11 to python3.14): install one, or name it with make PYTHON=..." >&2; exit 1; }
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
