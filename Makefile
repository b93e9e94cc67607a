# Two commands are all a newcomer needs: `make study` and `make test`. Both set up .venv by themselves.
SHELL := /bin/bash
PYTHON ?= python3
STUDY_PROFILE ?= profiles/local
BIN := .venv/bin
# On a terminal a bar for each rule; in a file Snakemake's own lines, which say how far it is.
LIVE := $(shell test -t 2 && echo --logger rich)
READY := .venv/.ready
DOCS := .venv-docs
# One torch thread for each job: jobs run side by side, and two OpenMP pools on the same cores slow each other down.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Where Python may not keep what it compiled (uv installs sources only), every process compiles torch anew: 33 s instead of 14 to start a stage.
export PYTHONDONTWRITEBYTECODE :=

# Snakemake starts its jobs with the path of .venv's Python in a shell, without quotes (the same characters: ops/doctor/packages.py).
SHELL_SIGNS := ' " ` $$ & ( ) ; < > | \ * ?
ifneq ($(strip $(word 2,x$(CURDIR)x) $(foreach sign,$(SHELL_SIGNS),$(findstring $(sign),$(CURDIR)))),)
$(error mtkv cannot run in "$(CURDIR)": a blank or one of $(SHELL_SIGNS) in the path breaks every job; move the folder)
endif

# A file's tests stay in one worker, and those of tests/slurm, which share one cluster; what takes longest begins first (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest
WORKERS := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
LIGHT := config stats provenance report plan status data test_cli.py
NUMERIC := align kv fuse distill training latent evaluate stages models stats original_api

.PHONY: study test test-fast test-elsewhere docs report lint format schema lock clean

study: $(READY)  ## run the pocket study and print where its report is
	@start=$$SECONDS; $(BIN)/snakemake --profile $(STUDY_PROFILE) $(LIVE) all && echo "finished in $$((SECONDS - start)) s" \
	  && $(BIN)/mtkv summary --brief results/pocket && echo "report: $(CURDIR)/results/pocket/report/index.html"

report: $(READY)  ## rebuild what lies below the predictions
	$(BIN)/snakemake --profile $(STUDY_PROFILE) --forcerun report -- results/pocket/report/index.html

test: $(READY) lint  ## linters, type checker and every test
	$(PYTEST) $(WORKERS)

test-fast: $(READY)  ## between two edits: the tests that take neither a cluster, a browser, whole runs nor torch
	$(PYTEST) $(WORKERS) -q -m 'not slow and not browser' $(LIGHT:%=tests/%)

test-elsewhere: $(READY)  ## the numeric tests as on another machine: plain instructions, two threads, sets and files in another order
	ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive PYTHONHASHSEED=1 $(PYTEST) $(WORKERS) -q -m 'not slow' \
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

docs: $(DOCS)/.ready  ## the documentation as a site, in build/site; a broken link or anchor is an error (with --quiet none would be)
	NO_MKDOCS_2_WARNING=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=src $(DOCS)/bin/mkdocs build --strict
	@echo "documentation: $(CURDIR)/build/site/index.html (its search needs a server: python3 -m http.server -d build/site)"

# One lock file for every platform and Python from 3.11 on (environment markers say which line is for whom). What only torch's build for
# CUDA 13 brings along is apart: another build of torch needs other versions of it, or none.
CUDA_ONLY := ^(nvidia-|cuda-|triton=)
UV := $(shell command -v uv || echo $(BIN)/uv)

lock: $(READY)  ## pin anew what pyproject.toml asks for; versions stay where they still fit (make UPGRADE=--upgrade lock: the newest)
	@test -x $(UV) || $(BIN)/pip install --quiet --disable-pip-version-check uv
	@mkdir -p build && cat requirements.lock requirements-cuda.lock > build/all.lock
	UV_FIND_LINKS="$${UV_FIND_LINKS-$$PIP_FIND_LINKS}" $(UV) pip compile --quiet --universal --python-version 3.11 --no-annotate \
	  --no-header $(UPGRADE) --extra dev --extra slurm --extra lora --extra gguf --output-file build/all.lock pyproject.toml
	@{ grep '^#' requirements.lock; grep -vE '$(CUDA_ONLY)' build/all.lock; } > build/cpu.lock && mv build/cpu.lock requirements.lock
	@grep -E '$(CUDA_ONLY)' build/all.lock > requirements-cuda.lock

# Torch's build, as uv names it: cpu, auto (what the driver can), or one for CUDA: make TORCH=cu130 study. `mtkv doctor` checks it.
TORCH ?= cpu
# uv does not read pip's settings: where pip is told of a folder with wheels, uv looks there, and for no other torch unless asked to.
BACKEND = $(if $(and $(PIP_FIND_LINKS),$(filter file,$(origin TORCH))),,--torch-backend=$(TORCH))

# A virtual environment $(1) with the packages that the lock file $(2) pins: by uv where it is there or can be had, else by pip.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "mtkv needs Python 3.11 or newer; try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(1)
	export UV_FIND_LINKS="$${UV_FIND_LINKS-$$PIP_FIND_LINKS}"; \
	  { command -v uv >/dev/null || $(1)/bin/pip install --quiet --disable-pip-version-check uv; } \
	  && PATH="$$PATH:$(1)/bin" uv pip install --quiet --python $(1)/bin/python $(BACKEND) -r $(2) \
	  || $(1)/bin/pip install --quiet --disable-pip-version-check -r $(2)
endef

$(READY): requirements.lock pyproject.toml
	$(call install,.venv,requirements.lock$(if $(filter cu130,$(TORCH)), -r requirements-cuda.lock))
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(DOCS)/.ready: requirements-docs.lock
	$(call install,$(DOCS),requirements-docs.lock)
	@touch $@

clean:
	rm -rf results checkpoints build .snakemake
