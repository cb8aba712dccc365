# Two commands matter: `make demo` and `make test`. Everything they need is installed into .venv on the first call.

PYTHON  ?= python3
PROFILE ?= embedded
JOBS    ?= 2
VENV    := .venv
BIN     := $(VENV)/bin
TOOLS   := .venv/.tools
CHART   := .venv/.chart
HELM    := v3.19.0

export RINGFENCE_PROFILE := $(PROFILE)
# What the demo's foreign payments are worth in euros; your own rates win.
export RINGFENCE_RATES ?= {"GBP": "1.17", "USD": "0.92"}
ifeq ($(PROFILE),embedded)
export MLFLOW_TRACKING_URI ?= sqlite:///$(CURDIR)/mlruns/mlflow.db
endif
# Unsets what would make a run differ from one machine to the next.
unexport PYTHONPATH PYTHONHOME

# Tests choose their own profile, MLflow and rates.
APART := env -u RINGFENCE_PROFILE -u RINGFENCE_RATES -u MLFLOW_TRACKING_URI

.DEFAULT_GOAL := help
# Every target that is no file.
.PHONY: $(shell grep -oE '^[a-z-]+:' Makefile | tr -d :)

help:            ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-15s %s\n", $$1, $$2}'

$(TOOLS)/bin/uv: requirements/tools.lock
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14) and "Ringfence needs Python 3.11 to 3.13")'
	test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --require-hashes --requirement requirements/tools.lock
	touch $@

$(VENV)/.installed: requirements/all.lock pyproject.toml $(TOOLS)/bin/uv
	$(TOOLS)/bin/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements/all.lock
	$(TOOLS)/bin/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

install: $(VENV)/.installed  ## Install everything into .venv, pinned and by hash

demo: install    ## From transactions to fraud scores, end to end (PROFILE=services for the real servers)
	$(BIN)/ringfence demo

serve: install   ## Serve the REST API on what the demo made
	$(BIN)/ringfence serve

test: install    ## All tests, JOBS=2 at once; each starts PostgreSQL, Redis and Neo4j itself and stops them again
	$(APART) $(BIN)/pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder --durations=20

test-unit: install  ## The fast tests, no servers
	$(APART) $(BIN)/pytest tests/unit tests/architecture

check: install   ## What CI runs before the tests: lint, format, types, advisories, the Helm chart where there is helm
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python requirements/audit.py
	@if command -v helm >/dev/null || test -x $(CHART)/bin/helm; then $(MAKE) --no-print-directory chart; \
		else echo "chart: NOT CHECKED, there is no helm; \`make chart\` builds one with Go"; fi

audit: install   ## Known advisories against the pinned packages; says so when nobody can be asked
	$(BIN)/python requirements/audit.py

fuzz-api: install  ## 10,000 cases made from the OpenAPI document, against a server of their own (some minutes)
	$(APART) $(BIN)/python -m tests.fuzz_api

$(CHART)/.installed: requirements/chart.lock $(TOOLS)/bin/uv
	$(PYTHON) -m venv --without-pip $(CHART)
	$(TOOLS)/bin/uv pip sync --quiet --python $(CHART)/bin/python --require-hashes requirements/chart.lock
	touch $@

# A helm on PATH is taken; else its own release is built with Go, which checks what it fetches.
chart: $(CHART)/.installed  ## Lint, render and validate the Helm chart
	@command -v helm >/dev/null || test -x $(CHART)/bin/helm \
		|| GOBIN=$(abspath $(CHART))/bin go install helm.sh/helm/v3/cmd/helm@$(HELM) \
		|| { echo "the chart needs helm 3, or Go to build it" >&2; exit 1; }
	$(CHART)/bin/python -m infra.chart $$(command -v helm || echo $(CHART)/bin/helm)

format: install  ## Format the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

docs: install    ## Write the pages that are made from code
	$(BIN)/python -m infra.docgen

bench: bench-features bench-stores bench-jobs   ## Benchmarks against named peers; results in bench/out

bench-features: install   ## The feature engine
	$(BIN)/python -m bench.features

bench-quality: install    ## The ladder of models on the book's data: make bench-quality DATA=FOLDER
	$(BIN)/python -m bench.quality --data $(DATA)

bench-jobs: install   ## A backfill through the ledger, against feast materialize
	$(BIN)/python -m bench.jobs

bench-scale: install  ## Ray, partitions and Redis Cluster; PAYMENTS=2000000 for a smaller backfill
	$(BIN)/python -m bench.scale --payments $(or $(PAYMENTS),20000000)

chaos-jobs: install   ## A backfill of 60 slices while 20 SIGKILLs hit workers, scheduler and servers (some minutes)
	$(BIN)/python -m bench.chaos_jobs

chaos-schedule: install  ## Two schedulers for five minutes, the leader killed every 30 seconds
	$(BIN)/python -m bench.chaos_schedule

bench-serving: install    ## The REST API against feast serve, MLflow, LitServe, Ray Serve and its own limit
	$(BIN)/python -m bench.serving

chaos-serving: install   ## The REST API under load while workers, stores, clients and the disk fail (some minutes)
	$(BIN)/python -m bench.faults

soak: install            ## The REST API for twenty minutes at half of its capacity
	$(BIN)/python -m bench.soak

bench-stores: install     ## The Feast stores
	$(BIN)/python -m bench.stores

services-up: install    ## Start PostgreSQL, Redis and Neo4j for development
	$(BIN)/ringfence services up

services-down: install  ## Stop them
	$(BIN)/ringfence services down

lock: $(TOOLS)/bin/uv   ## Resolve the lock files again
	$(TOOLS)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		pyproject.toml --output-file requirements/serving.lock
	$(TOOLS)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		--excludes requirements/excludes.txt --extra train --extra traces --extra ray --extra services --group dev \
		pyproject.toml --output-file requirements/all.lock
	printf 'kubernetes-validate>=1.34\n' | $(TOOLS)/bin/uv pip compile --quiet --upgrade --universal \
		--python-version 3.11 --generate-hashes - --custom-compile-command "make lock" --output-file requirements/chart.lock

clean:           ## Remove what the demo made (not the environment)
	rm -rf .ringfence mlruns/mlflow.db mlruns/artifacts
