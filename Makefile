# make demo | test | check | bench   (make help says more)
#
# VENV      the environment to use; a torch already in it is kept     make test VENV=~/envs/torch
# PIP_ARGS  options passed through to pip, such as an index of PyTorch's CPU build (README, "Install")
# The suite runs on at most two cores' worth of threads, so that it behaves the same everywhere.

VENV ?= .venv
PYTHON ?= python3
PIP_ARGS ?=
DEMO ?= demo
BIN := $(VENV)/bin
READY := $(VENV)/.retina-edge-$(shell cksum pyproject.toml | cut -d' ' -f1)

.PHONY: help demo test check format bench clean

help:
	@echo "make demo   set up, then the whole path on drawn photographs: train, export, score, explain (in $(DEMO)/)"
	@echo "make test   set up, then every check and test; RETINA_DATA=folder adds the tests on real photographs"
	@echo "make check  lint, types and floors only"
	@echo "make bench  the training benchmark; benchmarks/ has those of a trained model"
	@echo "make clean  remove the environment and everything made"

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -e '.[dev]'
	rm -f $(VENV)/.retina-edge-*
	touch $@

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/python -m pytest $(PYTEST_ARGS)

demo: $(READY)
	VENV=$(VENV) DEMO=$(DEMO) sh examples/demo.sh

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python benchmarks/train.py
	@echo "benchmarks/export.py, score.py and gradcam.py measure a trained checkpoint and its exports: see their --help"

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info
