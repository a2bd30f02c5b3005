# `make demo` and `make test` set up everything they need in .venv, once.
#
#   PYTHON=python3.12      the interpreter that makes .venv
#   TORCH='torch==2.13.0'  what pip installs as torch (a wheel's path or URL works too)
#   DEMO_ARGS, TEST_ARGS, BENCH_ARGS   passed on
#
# The same targets with `-here` appended (`make test-here`) use $(PYTHON) and the torch in it, without a network.
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0

ifdef HERE
PY           := $(PYTHON)
CLANG_FORMAT := clang-format
PARALLEL     := $(if $(shell $(PYTHON) -c 'import xdist' 2>/dev/null && echo yes),-n auto)
DEMO         := here
DEMO_JAX     := here
DEV          := here
else
PY           := $(VENV)/bin/python
CLANG_FORMAT := $(VENV)/bin/clang-format
PARALLEL     := -n auto
DEMO         := $(VENV)/.demo
DEMO_JAX     := $(VENV)/.demo-jax
DEV          := $(VENV)/.dev
endif

# Python compiles what it imports; compiling all that is installed would take as long as installing it. It must keep
# what it compiled: the tests start many processes, and reading torch's and transformers' source takes each of them
# seconds. The interpreter at hand is not ours to write into.
INSTALL      := $(PY) -m pip install -q --no-compile
ifndef HERE
unexport PYTHONDONTWRITEBYTECODE
endif

BUILD_FILES  := pyproject.toml CMakeLists.txt $(shell find cmake csrc -type f)
NATIVE_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo demo-short demo-jax demo-jax-short test test-all lint lint-python lint-types lint-native bench docs here clean
help:
	@echo "make demo        train a small retriever on Python's own documentation and ask it questions (5 minutes)"
	@echo "make demo-short  the same in about a minute, for CI"
	@echo "make demo-jax    the demo with JAX on eight simulated devices; make demo-jax-short in about two minutes"
	@echo "make test        every test that takes less than ten seconds or guards what nothing quicker does"
	@echo "make test-all    also the slow ones: the same properties on more cases, whole runs, larger compilations"
	@echo "make lint        style, import direction, types, C++ format"
	@echo "make bench       time the loss and its gradients against plain torch"
	@echo "make docs        build the documentation into build/site, every link checked"
	@echo "make here        install into the interpreter at hand without a network; then also make test-here, ..."
	@echo "make clean       remove .venv, build and caches"

demo: $(DEMO)
	$(PY) -m fastdense.demo $(DEMO_ARGS)
demo-short: $(DEMO)
	$(PY) -m fastdense.demo --short $(DEMO_ARGS)
demo-jax: $(DEMO_JAX)
	$(PY) -m fastdense.demo --jax --output_dir demo-jax-output $(DEMO_ARGS)
demo-jax-short: $(DEMO_JAX)
	$(PY) -m fastdense.demo --jax --short --output_dir demo-jax-output $(DEMO_ARGS)
test: $(DEV)
	$(PY) -m pytest -q $(PARALLEL) -m "not slow" $(TEST_ARGS)
test-all: $(DEV)
	$(PY) -m pytest -q $(PARALLEL) $(TEST_ARGS)
bench: $(DEV)
	$(PY) -m benches contrastive_loss $(BENCH_ARGS)
docs: $(DEV)
	$(PY) -m sphinx -q -W --keep-going -d build/doctrees docs build/site

lint: lint-python lint-types lint-native
lint-python: $(DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
lint-types: $(DEV)
	$(PY) -m mypy
lint-native: $(DEV)
	$(CLANG_FORMAT) --dry-run -Werror $(NATIVE_FILES)

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) "$(TORCH)"
	@touch $@
$(VENV)/.demo: $(VENV)/.torch $(BUILD_FILES)
	$(INSTALL) -e ".[train,retrieval,demo]"
	@touch $@
$(VENV)/.demo-jax: $(VENV)/.torch $(BUILD_FILES)
	$(INSTALL) -e ".[train,retrieval,demo,jax]"
	@touch $@ $(VENV)/.demo
$(VENV)/.dev: $(VENV)/.torch $(BUILD_FILES)
	$(INSTALL) -e ".[test,lint]"
	@touch $@ $(VENV)/.demo $(VENV)/.demo-jax

# The interpreter must already hold torch, scikit-build-core, pybind11, cmake and ninja.
here:
	$(PYTHON) -m pip install -q --no-index --no-deps --no-build-isolation -e .
%-here:
	$(MAKE) $* HERE=1

clean:
	rm -rf $(VENV) build docs/cli.md .hypothesis .mypy_cache .pytest_cache .ruff_cache
