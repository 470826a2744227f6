# Paths are relative and quoted, because the repository's own path may contain spaces.
.DEFAULT_GOAL := help
.PHONY: help install setup demo chapter up down env test test-vllm test-fault test-js test-clients compose-test base-answers bench-trainer bench-dataset bench-processor bench-soak bench-gate bench-rollout bench-serving bench-feedback bench-receipts bench-worlds experiment lint format openapi lock clean
.NOTPARALLEL:

PYTHON := .venv/bin/python
# The system's Python, for creating .venv and for compose-test. Default: the first interpreter that is new enough.
PYTHON3 ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
# Number of generated workloads for each fault in test-fault.
SEEDS ?= 20
# Parallel test processes, each with its own Kafka and Redis. 0: run in this process (for a debugger).
JOBS ?= 2
CHECKED := services shared sdk deploy examples benchmarks tests/compose tests/clients/__main__.py
# Script that starts a Docker engine for compose-test if none is running.
ENGINE_TOOL ?= ../shared/tools/docker-here
SERVICES := inference feedback processor trainer gpu rollout console local
UV = $$(command -v uv || echo .loopwright/uv/bin/uv)
COMPILE = "$(UV)" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock" $(UPGRADE)

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  Variables:"
	@echo "    PYTHON3                  Python 3.11 or newer, for creating .venv"
	@echo "    TORCH_BACKEND=cpu        install the much smaller CPU build of PyTorch (not checked by hash)"
	@echo "    LOOPWRIGHT_BASE_MODEL    use this model folder or Hugging Face id as the base model"
	@echo "    KAFKA_BOOTSTRAP_SERVERS  use this Kafka instead of starting one"
	@echo "    LOOPWRIGHT_KAFKA_CONFIG  file with its TLS and SASL properties (docs/operations.md)"
	@echo "    REDIS_URL                use this Redis instead of starting one"
	@echo "    ARGS                     more arguments for the command, for example: make demo ARGS=--help"

install: ## Create .venv from the lock file (skipped if it is up to date)
	@test -n "$(PYTHON3)" || { echo "make install: no Python 3.11 or newer found. Install one, or pass its path: make PYTHON3=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON3)" requirements/install.py

setup: install ## Download Kafka and the base model for the local stack (once per machine)
	@"$(PYTHON)" -m deploy.local setup

demo: install ## Run one complete loop: chat, correct, train, gate, swap, ask again (KEEP=1 leaves it running)
	@"$(PYTHON)" -m examples.demo $(if $(KEEP),--keep) $(ARGS)

chapter: install ## Run the notebook chapter: import its feedback rows, retrain, ask again (KEEP=1 leaves it running)
	@"$(PYTHON)" -m examples.chapter $(if $(KEEP),--keep) $(ARGS)

up: install ## Start the local stack: Kafka, Redis and the six services
	@"$(PYTHON)" -m deploy.local up

down: ## Stop the local stack (and the demo's)
	@test ! -x "$(PYTHON)" || "$(PYTHON)" -m deploy.local down
	@test ! -x "$(PYTHON)" || ! test -d .loopwright/demo || "$(PYTHON)" -m deploy.local down --root .loopwright/demo

env: ## Create .env with new secrets for docker compose (an existing .env is not changed)
	@sh deploy/docker/env.sh

test: setup ## Run all tests; install what they need first
	@sh deploy/local/chromium.sh
	@"$(PYTHON)" -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-vllm: setup ## Run the tests of the vLLM engine on a real server (installs vLLM for CPUs: 5.9 GB)
	@"$(PYTHON)" -m pytest tests/vllm -v $(ARGS)

test-fault: setup ## Inject faults (kills, rebalances, broker, disk and clock failures), each with SEEDS=20 workloads
	@LOOPWRIGHT_FAULT_SEEDS=$(SEEDS) "$(PYTHON)" -m pytest tests/fault -v -n $(JOBS) --dist worksteal $(ARGS)

test-js: install ## Test the JavaScript SDK (installs its tools with npm; part of make test)
	@"$(PYTHON)" -m pytest tests/integration/test_javascript_sdk.py $(ARGS)

test-clients: install ## Try LangChain, litellm and the Vercel AI SDK against inference (installs them on their own; needs npm)
	@"$(PYTHON)" -m tests.clients $(ARGS)

compose-test: ## Build and run docker-compose.yml, with the default model and with a model folder (needs Docker)
	@test -n "$(PYTHON3)" || { echo "make compose-test: no Python 3.11 or newer found. Install one, or pass its path: make PYTHON3=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON3)" -m tests.compose --engine-tool "$(ENGINE_TOOL)" $(ARGS)

base-answers: setup ## Regenerate the shipped answers of the demo's base model (about ten minutes)
	@for dtype in bfloat16 float32; do \
		LOOPWRIGHT_BASE_MODEL=.loopwright/models/smollm2-135m-instruct LOOPWRIGHT_TRAINER_REPLAY=.loopwright/base-answers \
		LOOPWRIGHT_TRAINER_DTYPE=$$dtype "$(PYTHON)" -m services.trainer.base.base_answers --ship || exit 1; \
	done

bench-trainer: setup ## Compare the trainer with plain TRL defaults; writes benchmarks/trainer.json
	@"$(PYTHON)" -m benchmarks.trainer $(ARGS)

bench-dataset: setup ## Measure the cost of a snapshot of up to 100,000 corrections; writes benchmarks/dataset.json
	@"$(PYTHON)" -m benchmarks.dataset $(ARGS)

bench-processor: install ## Compare the processor with its peers; writes benchmarks/processor.json (ARGS=--quick for a short run)
	@"$(PYTHON)" -m benchmarks.processor $(ARGS)

bench-soak: install ## Check for 30 minutes that the processor's memory does not grow; writes benchmarks/soak.json
	@"$(PYTHON)" -m benchmarks.soak $(ARGS)

bench-gate: install ## Measure the error rates and power of the gate by simulation; writes benchmarks/gate.json (ARGS=--quick)
	@"$(PYTHON)" -m benchmarks.gate $(ARGS)

bench-rollout: install ## Measure false rollbacks and power of the canary by simulation; writes benchmarks/rollout.json (ARGS=--quick)
	@"$(PYTHON)" -m benchmarks.rollout $(ARGS)

bench-serving: setup ## Compare serving with its peers, and swap under load; writes benchmarks/serving.json
	@"$(PYTHON)" -m benchmarks.serving $(ARGS)

bench-feedback: install ## Compare the feedback API with plain handlers; writes benchmarks/feedback.json
	@"$(PYTHON)" -m benchmarks.feedback $(ARGS)

bench-receipts: install ## Measure receipts from an index of five million outcomes; writes benchmarks/receipts.json
	@"$(PYTHON)" -m benchmarks.receipts $(ARGS)

bench-worlds: setup ## Train one recipe on three worlds unlike the demo's (hours; resumable); writes benchmarks/worlds.json
	@"$(PYTHON)" -m benchmarks.worlds $(ARGS)

experiment: setup ## Measure whether feedback improves the model (hours; resumable); writes benchmarks/experiment.json
	@"$(PYTHON)" -m benchmarks.experiment $(ARGS)

lint: install ## Run ruff and mypy --strict
	@"$(PYTHON)" -m ruff check .
	@"$(PYTHON)" -m ruff format --check .
	@"$(PYTHON)" -m mypy --strict $(CHECKED)
	@"$(PYTHON)" -m mypy --strict --python-version 3.10 sdk

format: install ## Format the code and apply ruff's fixes
	@"$(PYTHON)" -m ruff check --fix .
	@"$(PYTHON)" -m ruff format .

openapi: install ## Write the schemas of topics and HTTP APIs to docs/schemas
	@"$(PYTHON)" -m shared.schemas
	@"$(PYTHON)" -m tests.http_apis

lock: ## Recompile all lock files (UPGRADE=--upgrade for newer versions)
	@$(COMPILE) --extra dev pyproject.toml -o requirements/dev.txt
	@for service in $(SERVICES); do \
		case $$service in inference | trainer) store="--extra s3" ;; *) store= ;; esac; \
		$(COMPILE) --extra "$$service" $$store -c requirements/dev.txt pyproject.toml -o "requirements/$$service.txt" || exit 1; \
	done
	@$(COMPILE) -c requirements/dev.txt requirements/uv.in -o requirements/uv.txt
	@$(COMPILE) --no-deps -c requirements/dev.txt requirements/redis.in -o requirements/redis.txt
	@$(COMPILE) tests/clients/python.in -o tests/clients/python.txt
	@cd tests/clients && npm install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund
	@cd sdk-js && npm install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund
	@$(COMPILE) --override requirements/vllm-overrides.txt requirements/vllm.in -o requirements/vllm.txt
	@$(COMPILE) benchmarks/processor/quixstreams.in -o benchmarks/processor/quixstreams.txt

clean: ## Remove .venv, .loopwright and all caches, including the local stack's data
	@test ! -x "$(PYTHON)" || "$(PYTHON)" -m deploy.local down || true
	rm -rf .venv .loopwright .pytest_cache .mypy_cache .ruff_cache .hypothesis
