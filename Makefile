# What an operator or a developer does, one command each. README.md explains them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.ONESHELL:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONDONTWRITEBYTECODE := 1

# The lab's driver: auto takes metal where KVM works, else container.
LAB ?= auto
# Hosts of a firm; without it a throw-away lab host is made.
INVENTORY ?=

.PHONY: help env site plan test lint unit real molecule bench lab-down lock clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# One environment for all: installed again only when its lock changed.
env: $(VENV)/.installed ## Make the virtual environment
$(VENV)/.installed: requirements/dev.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is missing: install python3.11 (Debian 12: python3) or set PYTHON"; exit 1; }
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || tools/system-packages python3-venv
	echo "environment: $(VENV) from requirements/dev.txt"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	touch $@

site: env ## Tune, deploy, validate: the hosts of INVENTORY, or a lab host
	@tools/site "$(INVENTORY)" "$(LAB)"

plan: env ## Show what site would change on INVENTORY (or the lab host); touches nothing
	@tools/site --plan "$(INVENTORY)" "$(LAB)"

test: env ## Lint, unit tests and the molecule scenarios
	@tools/test

lint: env ## ansible-lint, yamllint, ruff, mypy
	@tools/lint

unit: env ## Unit tests on every Python from 3.9 to 3.13 that is present
	@tools/unit

real: env ## Tests on a booted container host with its own systemd, udev, PostgreSQL and Redis
	@tools/real-tests

molecule: env ## The scenarios alone
	@tools/molecule default metal

bench: env ## A CPU plan's seconds, and ratios measured side by side on ten container hosts
	@tools/bench

lab-down: ## Remove every lab host, with its mounts, namespaces, bridges and processes
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m lab down --all; fi

lock: env ## Resolve pyproject.toml into requirements/*.txt again
	@tools/lock

clean: lab-down ## Remove what was built here (images stay cached)
	rm -rf $(VENV) .cache reports .mypy_cache .ruff_cache .pytest_cache .hypothesis
