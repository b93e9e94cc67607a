# Two commands are all a newcomer needs: `make study` and `make test`. Both set up .venv by themselves.
SHELL := /bin/bash
PYTHON ?= python3
STUDY_PROFILE ?= profiles/local
BIN := .venv/bin
# On a terminal a bar for each rule; in a file Snakemake's own lines, which say how far it is.
LIVE := $(shell test -t 2 && echo --logger rich)
READY := .venv/.ready
# One torch thread for each job: jobs run side by side, and two OpenMP pools on the same cores slow each other down.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

# Snakemake starts its jobs with the path of .venv's Python in a shell, without quotes (the same characters: doctor/packages.py).
SHELL_SIGNS := ' " ` $$ & ( ) ; < > | \ * ?
ifneq ($(strip $(word 2,x$(CURDIR)x) $(foreach sign,$(SHELL_SIGNS),$(findstring $(sign),$(CURDIR)))),)
$(error mtkv cannot run in "$(CURDIR)": a blank or one of $(SHELL_SIGNS) in the path breaks every job; move the folder)
endif

# Several workers; a file's tests stay in one of them, and so do all that share SLURM's one cluster (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest
WORKERS := -n auto --maxprocesses 4 --dist loadgroup
NUMERIC := align kv fuse distill training latent models stages stats original_api

.PHONY: study test test-elsewhere report lint format schema clean

study: $(READY)  ## run the pocket study and print where its report is
	@start=$$SECONDS; $(BIN)/snakemake --profile $(STUDY_PROFILE) $(LIVE) all && echo "finished in $$((SECONDS - start)) s" \
	  && echo "report: $(CURDIR)/results/pocket/report/index.html"

report: $(READY)  ## rebuild what lies below the predictions
	$(BIN)/snakemake --profile $(STUDY_PROFILE) --forcerun report -- results/pocket/report/index.html

test: $(READY) lint  ## linters, type checker and every test
	$(PYTEST) $(WORKERS)

test-elsewhere: $(READY)  ## the numeric tests as on another machine: plain instructions, two threads, sets and files in another order
	ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=2 PYTHONHASHSEED=1 $(PYTEST) -q -m 'not slow' \
	  $$(ls -r $(NUMERIC:%=tests/%/test_*.py))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/snakefmt Snakefile workflow/rules

schema: $(READY)  ## write config/schema.json anew from the pydantic models
	$(BIN)/python -c 'from mtkv.config.schema import write_schema; write_schema("config/schema.json")'

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "mtkv needs Python 3.11 or newer; try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf results checkpoints build .snakemake
