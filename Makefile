# make demo | test | check | bench   (make help says more)
#
# VENV      the environment to use; a torch already in it is kept     make test VENV=~/envs/torch
# PIP_ARGS  options passed through to pip, such as an index of PyTorch's CPU build (README, "Install")
# The suite runs in two processes of one thread each, so that it behaves the same everywhere.

VENV ?= .venv
PYTHON ?= python3
PIP_ARGS ?=
DEMO ?= demo
BIN := $(VENV)/bin
VERSION := $(shell cksum pyproject.toml | cut -d' ' -f1)
# The commands alone need far fewer packages than the checks.
RUNNABLE := $(VENV)/.retina-edge-all-$(VERSION)
READY := $(VENV)/.retina-edge-dev-$(VERSION)

# The released model: where its run goes, and the data and ImageNet weights it is made from.
RELEASE := artifacts/release
RELEASE_RUN ?= artifacts/release-run
WEIGHTS ?= imagenet

.PHONY: help demo test check format bench evaluate release-model clean

help:
	@echo "make demo   set up, then the whole path on drawn photographs: train, export, score, explain (in $(DEMO)/)"
	@echo "make test   set up, then every check and test; RETINA_DATA=folder (with retina/, lesions/, fullsize/) adds the tests on real photographs"
	@echo "make check  lint, types and floors only"
	@echo "make bench  the training benchmark; benchmarks/ has those of a trained model"
	@echo "make evaluate DATA=folder       the figures of the card's Evaluation section, from the file that ships, into $(RELEASE)/metrics.json"
	@echo "make release-model DATA=folder  train, export and evaluate the released model again, in its place (WEIGHTS=imagenet or a file)"
	@echo "make clean  remove .venv, demo/ and what was built"

$(RUNNABLE) $(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -e '.[$(if $(findstring -dev-,$@),dev,all)]'
	rm -f $(VENV)/.retina-edge-*
	touch $@ $(RUNNABLE)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	$(BIN)/mypy tests
	$(BIN)/lint-imports

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

demo: $(RUNNABLE)
	VENV=$(VENV) DEMO=$(DEMO) sh examples/demo.sh

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python benchmarks/train.py
	@echo "benchmarks/export.py, score.py and gradcam.py measure a trained checkpoint and its exports: see their --help"

evaluate: $(RUNNABLE)
	$(BIN)/python -m retina.train.evaluation $(DATA) --model runtime/released.onnx --split valid --split test \
	  --out $(RELEASE)/metrics.json

# Days on a CPU: a GPU is advised. Stopped, a stage goes on with: retina-train --resume --name STAGE --artifacts $(RELEASE_RUN)
RUNS := $(RELEASE_RUN)/runs
START := $(RUNS)/released/final.pth
STAGE = test -f $(RUNS)/$(1)/metrics.json || $(BIN)/retina-train $(DATA) --name $(1) --artifacts $(RELEASE_RUN)
release-model: $(RUNNABLE)
	$(call STAGE,released) --recipe released --weights $(WEIGHTS)
	$(call STAGE,released-512) --recipe released-512 --weights $(START) --seed 43
	$(call STAGE,released-open) --recipe released-open --weights $(START) --seed 44
	$(call STAGE,released-640) --recipe released-640 --weights $(START) --seed 45
	$(BIN)/python -m retina.train.averaging $(DATA) \
	  $(RUNS)/released-512/final.pth $(RUNS)/released-open/final.pth $(RUNS)/released-640/final.pth --out $(RELEASE_RUN)/best.pth
	$(BIN)/retina-export $(RELEASE_RUN)/best.pth --precision int8 --explain --calibration $(DATA) --out $(RELEASE_RUN)/int8.onnx
	$(BIN)/python -m retina.export.novelty $(DATA)/train/images --model $(RELEASE_RUN)/int8.onnx \
	  --out $(RELEASE)/retina_multitask.onnx
	mv $(RELEASE)/retina_multitask.onnx runtime/released.onnx
	ln -sf ../../runtime/released.onnx $(RELEASE)/retina_multitask.onnx
	sed s/retina_multitask/released/ $(RELEASE)/retina_multitask.onnx.sha256 > runtime/released.onnx.sha256
	$(MAKE) evaluate DATA=$(DATA)

clean:
	rm -rf .venv demo build dist *.egg-info  # the defaults only: a VENV or DEMO that was given is its owner's
