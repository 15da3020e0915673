# make demo [MODULE=sge|se|gc|gct|drconv|none]   train a detector with attention, see its AP by object size
# make test                               lint and every test; on both OpenMMLab stacks what touches them
# make docs                               the documentation as a site, in build/site
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

MODULE ?= sge
VENV ?= .venv
BIN := $(VENV)/bin
UPSTREAM := $(VENV)/upstream
# a shim that finds no interpreter behind it is passed over
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
CONSTRAINTS := requirements/constraints.txt
HEADLESS := $(shell sed -n 's/^\(opencv-python-headless==[^ ;]*\).*/\1/p' $(CONSTRAINTS))
PYTEST := $(BIN)/python -m pytest -q --numprocesses 2 --maxprocesses 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# two test processes on two cores: more threads only wait for each other
test test-slow: export OMP_NUM_THREADS := 1

.PHONY: demo test test-slow lint docs setup clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml setup.py $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "mmattn needs Python 3.10 to 3.13 with venv; none was found. Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "== Setting up $(VENV) with $(PYTHON) (about two minutes, once)"
	@# an interrupted set-up may have left an environment without pip
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -c $(CONSTRAINTS) -e '.[onedl,test]'
	@# mmcv asks for opencv-python, whose libGL slim machines lack: the headless build takes its place
	$(BIN)/python -m pip uninstall -q -y opencv-python
	$(BIN)/python -m pip install -q --force-reinstall --no-deps $(HEADLESS)
	@touch $@

# the upstream stack, as pure wheels in front of the path; torch is there already
$(UPSTREAM)/.ready: $(VENV)/.ready
	@rm -rf $(UPSTREAM)
	$(BIN)/python -m pip install -q --no-deps -c $(CONSTRAINTS) --target $(UPSTREAM) mmengine mmcv-lite mmdet
	@touch $@

DEMO_CONFIG = $(wildcard configs/demo/faster-rcnn_r50w16$(if $(filter none,$(MODULE)),,-$(MODULE)-*)_fpn_*.py)
DEMO_DIR = work_dirs/demo/$(MODULE)
# said here, a variable MMDET_DATASETS in the environment does not move it
DEMO_DATA = data_root=data/shapes/

.PHONY: check-module
check-module:
	@test "$(words $(DEMO_CONFIG))" = 1 || { echo "MODULE must be se, sge, gc, gct, drconv or none, got '$(MODULE)'" >&2; exit 1; }

demo: check-module $(VENV)/.ready
	@echo "== 1/3 Drawing a dataset"
	$(BIN)/python tools/dataset/draw_shapes.py data/shapes
	@echo "== 2/3 Training in $(DEMO_DIR), about four minutes (Ctrl-C, then make demo again, resumes)"
	@# the evaluation is the next step
	$(BIN)/python tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO_DIR) --resume --cfg-options $(DEMO_DATA) train_cfg.val_begin=1000000
	@echo "== 3/3 Evaluating"
	$(BIN)/python tools/test.py $(DEMO_CONFIG) $(DEMO_DIR) --work-dir $(DEMO_DIR) --cfg-options $(DEMO_DATA)

lint: $(VENV)/.ready
	$(BIN)/ruff check --output-format concise
	$(BIN)/ruff format --check

test: $(VENV)/.ready $(UPSTREAM)/.ready lint docs
	@echo "== Tests on the OneDL stack"
	$(PYTEST)
	@echo "== Tests on the upstream stack"
	PYTHONPATH=$(abspath $(UPSTREAM)) $(PYTEST) -m 'not slow and not once'

test-slow: $(VENV)/.ready $(UPSTREAM)/.ready
	$(PYTEST) -m slow
	PYTHONPATH=$(abspath $(UPSTREAM)) $(PYTEST) -m slow

# the tools of the site
$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e '.[docs]'
	@touch $@

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/.docs
	$(BIN)/mkdocs build --quiet --strict
	@echo "the site: build/site/index.html"

clean:
	rm -rf $(VENV) build dist *.egg-info mmattn/.mim .pytest_cache .ruff_cache
