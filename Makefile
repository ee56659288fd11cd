# `make` lists what there is.

PYTHON ?= python3
PORT ?= 8000
VENV := .venv

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## the demo site on PORT (8000), with no Redis
	@scripts/demo $(VENV) $(PORT)

test: ## all of it: set up, lint, every test, other versions of gunicorn and Python
	@scripts/debian-packages
	@$(MAKE) --no-print-directory $(VENV)/.installed-dev
	@scripts/test $(VENV)

lint: $(VENV)/.installed-dev ## ruff and mypy
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy --strict

format: $(VENV)/.installed-dev ## rewrite the sources as ruff formats them
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

autobahn: $(VENV)/.installed-dev ## WebSocket's conformance, 517 cases in 20 minutes; CASES="7.* 12.1.1"
	@scripts/debian-packages
	@scripts/autobahn $(VENV) $(CASES)

socketio-suites: $(VENV)/.installed-dev ## Engine.IO's and Socket.IO's conformance; SUITES=dir, their checkout
	@scripts/debian-packages
	@scripts/socketio-suites $(VENV) "$(SUITES)" $(APP)

bench: ## the hub beside its peers in one table; ARGS="bars" and more: ARGS=--help
	@scripts/bench .venv-bench "$(PYTHON)" $(ARGS)

clean: ## remove everything that make has made
	$(MAKE) -C bench clean
	rm -rf .venv .venv-* bench/peers/node_modules tests/socketio/node_modules build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	@scripts/make-venv $(VENV) "$(PYTHON)" -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml
	@scripts/make-venv $(VENV) "$(PYTHON)" -e '.[test,lint]'
	@touch $(VENV)/.installed $@

.PHONY: help demo test lint format autobahn socketio-suites bench clean
