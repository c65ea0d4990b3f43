# `make demo` and `make test` are all a newcomer needs; both install first if necessary.

PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
PYTEST := $(BIN)/python -m pytest --durations=10
# one thread each, also in the processes that tests start: idle threads spin and take the other's core
TWO_WORKERS := -n 2 --dist worksteal
test test-slow bench-small: export OMP_NUM_THREADS = 1
BENCHMARKS := record_index loader training extraction partial_fc methods scaling artefacts ijbc \
	bootstrap retrieval landmarks checkpoint

.PHONY: demo demo-short lfw test test-slow test-mxnet faults lint graph audit bench \
	bench-small install clean

demo: install            ## the whole job on embedded data, about 5 minutes on 2 cores
	@PYTHON=$(BIN)/python bash runs/demo.sh

demo-short: install      ## the same, far too little training: to see that it runs
	@PYTHON=$(BIN)/python SHORT=1 bash runs/demo.sh

lfw: install             ## the same on real faces: make lfw LFW=... IJBC=...
	@PYTHON=$(BIN)/python LFW="$(LFW)" IJBC="$(IJBC)" bash runs/lfw_opclass.sh

test: install            ## the test suite: at most 10 minutes on 2 cores
	@$(PYTEST) $(TWO_WORKERS)

test-slow: install       ## the long tests and repetitions
	@$(PYTEST) $(TWO_WORKERS) -m slow

faults: install          ## kills at random moments, and every product in full: hours
	@BCT_KILLS=9 $(PYTEST) -m "slow or faults" tests/faults
	@$(PYTEST) -m faults --ignore=tests/faults

test-mxnet: .venv-mxnet/.complete  ## our record files against MXNet itself
	@PYTHONPATH=. .venv-mxnet/bin/python -m pytest -q -W ignore --noconftest tests/interop_mxnet.py

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

graph:                   ## which room imports which, circles, climbs
	@$(PYTHON) tests/support/imports.py

audit: install           ## known vulnerabilities of the installed packages
	@$(BIN)/python .ci/audit.py

bench: install           ## all benchmarks into benchmarks/results/: about 15 minutes on 2 cores
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --save || exit 1; done
	@$(BIN)/python -m benchmarks.readme

bench-small: install     ## the same in tiny sizes, nothing kept, two at a time: to see that they run
	@printf '%s\n' $(BENCHMARKS) export start embed | \
		xargs -P 2 -I NAME $(BIN)/python -m benchmarks.NAME --small

install: $(VENV)/.complete

$(VENV)/.complete: requirements.txt constraints.txt pyproject.toml
	@echo "installing into $(VENV): about 2 minutes and 6 GB"
	@$(PYTHON) -m venv --upgrade-deps $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[test,onnx,wandb,timm]'
	@touch $@

.venv-mxnet/.complete: requirements-mxnet.txt
	@$(PYTHON) -m venv .venv-mxnet
	@.venv-mxnet/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement requirements-mxnet.txt
	@touch $@

clean:                   ## removes the environments; data and results stay
	rm -rf $(VENV) .venv-mxnet
