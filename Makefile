# Everything a fresh Debian or Ubuntu machine with Python needs is made by these targets themselves.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test soak bench coverage lint dev clean
ARGS ?=

help: ## this list
	@echo "transfuse: a FUSE stack in Python with both ends of the protocol"; echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null || grep '##' Makefile
	@echo; echo "ARGS='...' is passed on to the program behind demo, test, soak and bench; PYTHON=... chooses the interpreter."

demo: ## set up .venv, export a directory, read it through the kernel and without it, compare
	@PYTHON="$(PYTHON)" tools/bootstrap.sh demo
	@.venv/bin/transfuse demo $(ARGS)

test: ## set up .venv and run everything: lint, types, both forms, every Python found
	@PYTHON="$(PYTHON)" tools/bootstrap.sh test
	@.venv/bin/python tools/check.py $(ARGS)

soak: dev ## the long tests (random operations, load) with a new seed
	@.venv/bin/python -m pytest --soak -m soak --timeout 3600 $(ARGS)

bench: dev ## compare with the native filesystem and other servers; writes docs/benchmarks.md
	@.venv/bin/python -m bench $(ARGS)

coverage: dev ## what the tests without interop reach in the plain form, with a floor
	@TRANSFUSE_NATIVE=0 .venv/bin/python -m pytest -q -m "not interop" -n auto --cov --cov-report=term $(ARGS)

lint: ## ruff and mypy --strict
	@PYTHON="$(PYTHON)" tools/bootstrap.sh test
	@.venv/bin/python tools/check.py --only lint

dev: ## set up .venv for development: editable, test tools, compiled form built in place
	@PYTHON="$(PYTHON)" tools/bootstrap.sh test
	@.venv/bin/python tools/check.py --only native

clean: ## remove builds, caches and virtual environments
	rm -rf build dist src/*.egg-info src/transfuse/_native/_c .venv .venvs .bench .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
