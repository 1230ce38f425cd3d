# Every target does all of its own set-up in .venv; a second run is fast.
#   make serve   two vLLM workers and a frontend with the demo model (the mocker where vLLM's CPU build cannot run)
#   make test    linters, type checkers and every test, a real vLLM included
#   make check   linters and type checkers
#   make bench   this server beside its peers (BENCH="--quick")        make soak   the long-running test        make docs   the documentation as HTML

SHELL    := /bin/bash
PYTHON   ?= $(shell command -v python3.11 || command -v python3)
VENV     := .venv
BIN      := $(VENV)/bin
COMPILED := plugins/kv-router
PLUGINS  := $(filter-out $(COMPILED),$(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml)))
MANIFEST := pyproject.toml hatch_build.py $(wildcard plugins/*/pyproject.toml dynamo_core/*/*.c)
MODEL    ?= .cache/demo-model
PORT     ?= 8000

.PHONY: install serve test check docs bench soak clean

install: $(VENV)/.compiled

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("dynamo needs Python 3.11 or newer; this is %s. Set PYTHON=/path/to/python3.11." % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade 'pip>=25.1'

$(VENV)/.installed: $(MANIFEST) | $(VENV)/bin/python
	$(BIN)/pip install -q --group dev -e . $(addprefix -e ,$(PLUGINS))
	@touch $@

$(VENV)/.compiled: $(COMPILED)/hatch_build.py $(wildcard $(COMPILED)/src/*/*.py) $(VENV)/.installed
	$(BIN)/pip install -q -e $(COMPILED)
	@touch $@

# Exit code 3 of the installer: this machine cannot run vLLM; its one sentence says why. The stamp then holds "mocker".
$(VENV)/.vllm: contrib/install_vllm.py plugins/vllm/pyproject.toml | $(VENV)/.compiled
	@$(BIN)/python contrib/install_vllm.py; code=$$?; \
	if [ $$code -eq 0 ]; then echo vllm > $@; elif [ $$code -eq 3 ]; then echo mocker > $@; else exit $$code; fi

$(MODEL)/.complete: contrib/demo_model/make_demo_model.py | $(VENV)/.vllm
	@$(BIN)/python contrib/demo_model/make_demo_model.py $(MODEL) $$(grep -q mocker $(VENV)/.vllm && echo --tokenizer-only)

serve: $(VENV)/.compiled $(VENV)/.vllm $(MODEL)/.complete
	$(BIN)/dynamo serve --plugin kv-router --engine $$(cat $(VENV)/.vllm) --model $(MODEL) --model-name demo --workers 2 --http-port $(PORT)

check: $(VENV)/.compiled
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pyright

# vLLM changes logging, loads a good part of PyPI and leaves sockets to the garbage collector: its tests have a process of their own.
# The last run is kv-router not compiled.
test: check $(VENV)/.vllm
	$(BIN)/python -m pytest -m "not vllm"
	$(BIN)/python -m pytest -m vllm -W default::ResourceWarning
	rm -rf build/pure && mkdir -p build/pure/dynamo_kv_router && cp $(COMPILED)/src/dynamo_kv_router/*.py build/pure/dynamo_kv_router
	PYTHONPATH=build/pure $(BIN)/python -m pytest $(COMPILED) tests/simulator

docs: $(VENV)/.compiled
	$(BIN)/pip install -q --group docs
	$(BIN)/sphinx-build -W -q -b html docs build/docs
	@echo "build/docs/index.html"

bench: $(VENV)/.compiled
	@test -f $(MODEL)/tokenizer.json || $(BIN)/python contrib/demo_model/make_demo_model.py $(MODEL)-tokenizer --tokenizer-only
	$(BIN)/python -m benchmarks peers --model $$(test -f $(MODEL)/tokenizer.json && echo $(MODEL) || echo $(MODEL)-tokenizer) $(BENCH)

soak: $(VENV)/.compiled
	$(BIN)/python -m benchmarks.soak --minutes 20

clean:
	rm -rf build dist $(VENV)
