# Paths are relative and quoted: the repository may lie under a path with spaces.
.DEFAULT_GOAL := help
.PHONY: help install setup demo chapter up down env test test-fault compose-test base-answers bench-trainer bench-processor bench-soak experiment lint format lock clean
.NOTPARALLEL:

PYTHON := .venv/bin/python
# The machine's own Python, used to make .venv and for compose-test: PYTHON3=... names it, else the first that is new enough.
PYTHON3 ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
# Workloads that test-fault tries each fault with.
SEEDS ?= 20
# Test processes, each with a Kafka and a Redis of its own; 0: this process alone (for a debugger).
JOBS ?= 2
CHECKED := services shared sdk deploy examples benchmarks tests/compose
# Starts a Docker engine for compose-test where none runs.
ENGINE_TOOL ?= ../shared/tools/docker-here
SERVICES := inference feedback processor trainer rollout console local
UV = $$(command -v uv || echo .loopwright/uv/bin/uv)
COMPILE = "$(UV)" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock" $(UPGRADE)

help: ## What there is to do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  Variables: PYTHON3 (interpreter for .venv), TORCH_BACKEND (cpu: a much smaller PyTorch, not checked by hash),"
	@echo "  KAFKA_BOOTSTRAP_SERVERS, REDIS_URL, LOOPWRIGHT_BASE_MODEL (yours instead of the local ones)."

install: ## Make .venv from the hashed lock; skipped when nothing changed
	@test -n "$(PYTHON3)" || { echo "make install: Python 3.11 or newer is needed; install it or name it: make PYTHON3=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON3)" requirements/install.py

setup: install ## Fetch and build what the local stack runs on (Kafka, Redis, the base model)
	@"$(PYTHON)" -m deploy.local setup

demo: install ## One whole loop: ask, correct, train, gate, swap, ask again (KEEP=1 leaves it running)
	@"$(PYTHON)" -m examples.demo $(if $(KEEP),--keep) $(ARGS)

chapter: install ## A notebook's feedback rows: import, dataset, retrained model, answers
	@"$(PYTHON)" -m examples.chapter $(if $(KEEP),--keep) $(ARGS)

up: install ## Start the local stack
	@"$(PYTHON)" -m deploy.local up

down: ## Stop the local stack
	@test ! -x "$(PYTHON)" || "$(PYTHON)" -m deploy.local down
	@test ! -x "$(PYTHON)" || ! test -d .loopwright/demo || "$(PYTHON)" -m deploy.local down --root .loopwright/demo

env: ## Write .env with new secrets for docker compose; one that is there stays as it is
	@sh deploy/docker/env.sh

test: setup ## Install what is missing and run all tests
	@sh deploy/local/chromium.sh
	@"$(PYTHON)" -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-fault: setup ## Every fault with SEEDS workloads (20): kills, zombies, rebalances, broker, disks, clocks; broken variants caught
	@LOOPWRIGHT_FAULT_SEEDS=$(SEEDS) "$(PYTHON)" -m pytest tests/fault -v -n $(JOBS) --dist worksteal $(ARGS)

compose-test: ## Build docker-compose.yml and run it twice: the default model, then a model folder; needs Docker
	@test -n "$(PYTHON3)" || { echo "make compose-test: Python 3.11 or newer is needed; install it or name it: make PYTHON3=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON3)" -m tests.compose --engine-tool "$(ENGINE_TOOL)" $(ARGS)

base-answers: setup ## Regenerate the answers of the demo's base that the trainer ships (about ten minutes)
	@for dtype in bfloat16 float32; do \
		LOOPWRIGHT_BASE_MODEL=.loopwright/models/smollm2-135m-instruct LOOPWRIGHT_TRAINER_REPLAY=.loopwright/base-answers \
		LOOPWRIGHT_TRAINER_DTYPE=$$dtype "$(PYTHON)" -m services.trainer.base.base_answers --ship || exit 1; \
	done

bench-trainer: setup ## Our training beside plain TRL defaults; writes benchmarks/trainer.json
	@"$(PYTHON)" -m benchmarks.trainer $(ARGS)

bench-processor: install ## The stream engine and the processor beside their peers; writes benchmarks/processor.json (ARGS=--quick)
	@"$(PYTHON)" -m benchmarks.processor $(ARGS)

bench-soak: install ## The processor for half an hour, the second half watched: whether its memory grows; writes benchmarks/soak.json
	@"$(PYTHON)" -m benchmarks.soak $(ARGS)

experiment: setup ## Does it help? Seven arms, three seeds each, through trainer and gate; resumable; writes benchmarks/experiment.json
	@"$(PYTHON)" -m benchmarks.experiment $(ARGS)

lint: install ## ruff and mypy --strict
	@"$(PYTHON)" -m ruff check .
	@"$(PYTHON)" -m ruff format --check .
	@"$(PYTHON)" -m mypy --strict $(CHECKED)

format: install ## Format and fix what ruff can fix
	@"$(PYTHON)" -m ruff check --fix .
	@"$(PYTHON)" -m ruff format .

lock: ## Compile all locks again (UPGRADE=--upgrade for newer versions)
	@$(COMPILE) --extra dev pyproject.toml -o requirements/dev.txt
	@for service in $(SERVICES); do \
		case $$service in inference | trainer) store="--extra s3" ;; *) store= ;; esac; \
		$(COMPILE) --extra "$$service" $$store -c requirements/dev.txt pyproject.toml -o "requirements/$$service.txt" || exit 1; \
	done
	@$(COMPILE) -c requirements/dev.txt requirements/uv.in -o requirements/uv.txt
	@$(COMPILE) --no-deps -c requirements/dev.txt requirements/redis.in -o requirements/redis.txt
	@$(COMPILE) benchmarks/processor/quixstreams.in -o benchmarks/processor/quixstreams.txt

clean: ## Remove what was installed, built and stored, data of the local stack included
	@test ! -x "$(PYTHON)" || "$(PYTHON)" -m deploy.local down || true
	rm -rf .venv .loopwright .pytest_cache .mypy_cache .ruff_cache .hypothesis
