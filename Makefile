# Thin: each target makes sure of the environment, then calls one program.
# GNU make 3.81 (macOS) is enough.

.DEFAULT_GOAL := help
.PHONY: help lab test notebooks grade bench bench-gpu environment lock

# The first Python that is new enough; `make lab PYTHON=…` chooses another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && exit; done; echo python3)
PREPARE = @"$(PYTHON)" -I loralab/environment.py $(if $(filter file,$(origin PYTHON)),,--chosen)
# Passed on: make lab ARGS=--no-browser, make test ARGS="-k doctor"
ARGS ?=

help:
	@echo "make lab          open the course in JupyterLab (the first time: install it)"
	@echo "make test         run the whole test suite"
	@echo "make notebooks    build notebooks/ from solutions/"
	@echo "make grade        grade a class folder: make grade ARGS=\"--class DIR 01\""
	@echo "make bench        compare the grader with stock nbgrader and otter-grader"
	@echo "make bench-gpu    measure memory and speed on a GPU, beside what was predicted"
	@echo "make lock         resolve the locks anew from pyproject.toml"
	@echo
	@echo "ARGS=... is passed on:     make lab ARGS=--no-browser"
	@echo "PYTHON=... chooses one:    make lab PYTHON=python3.12"

environment:
	$(PREPARE)

lab: environment
	@.venv/bin/loralab lab $(ARGS)

test:
	$(PREPARE) tests/requirements.lock
	@.venv/bin/python -m pytest $(ARGS)

notebooks: environment
	@.venv/bin/autograder release $(ARGS)

grade: environment
	@.venv/bin/autograder grade $(ARGS)

bench: environment
	@.venv/bin/python -m tests.bench $(ARGS)

bench-gpu: environment
	@.venv/bin/python -m tests.bench.gpu $(ARGS)

lock: environment
	@.venv/bin/python .ci/lock.py
