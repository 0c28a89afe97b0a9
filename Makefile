# All development commands; `make` lists them. ARGS="..." is passed on to run, test, verify, bench, fuzz and acceptance.

PYTHON ?= python3
VENV ?= .venv
UV ?= $(shell command -v uv 2>/dev/null)
ARGS ?=

BIN := $(VENV)/bin
LOCK := requirements/dev.txt
INSTALL := $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install -qq --disable-pip-version-check) --constraint $(LOCK)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test parts verify estimates configs acceptance soak upstream lint type fmt docs dashboards bench fuzz lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.installed-run ## Set up, then run the demo on a tiny model: no download of a model, no compiling
	@$(BIN)/llamatel demo $(ARGS)

# Two files at a time; a test that failed next to another is run again alone, and has to pass there.
test: parts ## Set up, get or build the real programs that tests use (once, some minutes), run the tests
ifeq ($(ARGS),)
	$(BIN)/python -m pytest -n 2 --dist loadfile || \
		{ [ $$? -eq 1 ] && $(BIN)/python -m pytest --last-failed --last-failed-no-failures none; }
else
	$(BIN)/python -m pytest $(ARGS)
endif

parts: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.parts

verify: parts ## Compare planned cache sizes with what llama-server allocates, on every model and setting of the suite
	$(BIN)/python -m tests.exact.verify $(ARGS)

acceptance: parts ## Run the long proofs and write their figures to tests/acceptance/results; one: ARGS=NAME
	$(BIN)/python -m tests.acceptance $(ARGS)

soak: parts ## Run a real server under load and faults for an hour (SOAK_SECONDS, SOAK_SEED); every count must agree
	$(BIN)/python -m tests.acceptance soak

upstream: parts ## Compare the newest llama.cpp available with what llamatel knows; 1 if anything differs (ARGS=--json)
	@$(BIN)/python -m tests.upstream $(ARGS)

estimates: parts ## Compare estimated compute buffers with llama.cpp's, on models of real dimensions
	$(BIN)/python -m tests.exact.estimates $(ARGS)

# torch and transformers are in no lock file: only this target uses them, in an environment of its own.
configs: $(VENV)/.installed-dev ## Write the defaults of config.json and its test data: ARGS="LLAMA_CPP_SOURCE_TREE"
	$(PYTHON) -m venv $(VENV)/configs
	$(VENV)/configs/bin/python -m pip install -qq torch transformers==5.24.0 sentencepiece protobuf
	$(VENV)/configs/bin/python -m tests.configs.library_defaults
	$(VENV)/configs/bin/python -m tests.configs $(ARGS)

lint: $(VENV)/.installed-dev ## Check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

type: $(VENV)/.installed-dev ## Check types only
	$(BIN)/mypy

fmt: $(VENV)/.installed-dev ## Format, and fix what can be fixed automatically
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

docs: $(VENV)/.installed-dev ## Write docs/metrics.md and docs/spans.md from their tables
	$(BIN)/python -m llamatel.telemetry.reference

dashboards: $(VENV)/.installed-dev ## Write the Grafana dashboards and the Prometheus rules from their code
	$(BIN)/python -m llamatel_dashboards.build
	$(BIN)/python -m llamatel_dashboards.rules

bench: parts ## Measure what llamatel costs; one part: ARGS="--only header"
	$(BIN)/python -m benchmarks $(ARGS)

# atheris is not in the lock file: it does not exist for every Python, and only this target needs it.
fuzz: $(VENV)/.installed-dev ## Feed broken input to the parsers: mutations, then atheris, a minute for each target
	$(BIN)/python -m tests.fuzz $(ARGS)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(INSTALL) atheris || \
		{ echo "no atheris for this Python and system: mutations only" >&2; exit 1; }
	$(BIN)/python -m tests.fuzz --atheris $(ARGS)

lock: ## Resolve requirements/dev.txt again (needs uv)
	@test -n "$(UV)" || { echo "make lock needs uv: pip install uv" >&2; exit 1; }
	$(UV) pip compile --quiet --universal --python-version 3.10 --upgrade --extra dev --no-annotate --no-header \
		--no-emit-index-url --no-emit-find-links pyproject.toml --output-file $(LOCK)
	@! grep -n '://' $(LOCK)

clean: ## Remove the virtual environment, builds and caches
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment, by uv if it is installed. On Debian `python3 -m venv` needs the package python3-venv: it is
# installed for root (a container), other users get the command.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "llamatel needs Python 3.10 or newer; name yours with: make PYTHON=python3.12" >&2; exit 1; }
	@if [ -n "$(UV)" ]; then \
		$(UV) venv --quiet --seed --clear --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV); \
	else \
		if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing python3-venv"; \
			{ apt-get -q update && apt-get -q install -y --no-install-recommends python3-venv; } >/dev/null; \
		fi; \
		$(PYTHON) -m venv --clear $(VENV) >/dev/null || \
			{ rm -rf $(VENV); echo "this Python cannot make a virtual environment: sudo apt-get install python3-venv" >&2; exit 1; }; \
	fi
	@touch $@

$(VENV)/.installed-run: $(VENV)/.made pyproject.toml $(LOCK)
	@echo "installing llamatel and a prebuilt llama.cpp into $(VENV)"
	@$(INSTALL) --editable '.[server]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.made pyproject.toml $(LOCK)
	@echo "installing llamatel and what its tests need into $(VENV)"
	@$(INSTALL) --editable '.[dev]'
	@touch $(VENV)/.installed-run $@
