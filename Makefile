# make demo   a fresh machine to a finished run      make test   build, then every test
# make test-heavy   kills and mutations, minutes
# make lint types docs native-gates sanitize cuda-check bench clean
#
# The environment is made on first use. VENV= names another folder, PYTHON= another interpreter.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# Compiles what changed since the last time, seconds when nothing did.
BUILD := $(BIN)/python setup.py --quiet build_ext --inplace
NATIVE_SOURCES := find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu'

.PHONY: demo test test-heavy venv build lint format types docs native-gates sanitize cuda-check bench clean
.PRECIOUS: $(VENV)/%.stamp

demo: $(VENV)/demo.stamp
	$(BUILD)
	$(BIN)/mdft demo

test: $(VENV)/dev.stamp
	$(BUILD)
	MDFT_STRICT=1 $(BIN)/python -m pytest tests $(PYTEST_ARGS)

# Kills commands at their file operations and mutates files of every format: some minutes.
test-heavy: $(VENV)/dev.stamp
	$(BUILD)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.reliability \
	  --json benchmarks/results/reliability.json $(HEAVY_ARGS)
	$(BIN)/python -m benchmarks.pages

venv: $(VENV)/dev.stamp

build: $(VENV)/dev.stamp
	$(BUILD)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(NATIVE_SOURCES) | xargs $(BIN)/clang-format --dry-run -Werror

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(NATIVE_SOURCES) | xargs $(BIN)/clang-format -i

types: $(VENV)/dev.stamp
	$(BIN)/mypy

# The pages and the API as a site in site/; a link or a docstring's role that leads nowhere fails.
docs: $(VENV)/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What can be said about compiled code without running it. Looks at CUDA when nvcc was there.
native-gates: build
	$(BIN)/python scripts/check_native.py mdft_fast/lib/*.so \
	  $$(find build/editable-* -name '*.cu.o.log')
	if [ -e mdft_fast/lib/libmdft_ops_cuda.so ]; then \
	  $(BIN)/python scripts/check_sass.py mdft_fast/lib/libmdft_ops_cuda.so; fi

# The operators' tests on host code under AddressSanitizer and UBSan, in a build of its own.
sanitize: $(VENV)/dev.stamp
	PYTHON=$(BIN)/python scripts/sanitize.sh $(SANITIZE_ARGS)

# Compiles the .cu files and checks them; needs nvcc and no GPU.
cuda-check:
	MDFT_WITH_CUDA=1 $(MAKE) native-gates

bench: $(VENV)/dev.stamp
	$(BUILD)
	$(BIN)/python benchmarks/run.py $(BENCH_ARGS)

clean:
	rm -rf build dist site mdft_fast/lib mdft_fast/_native*.so *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

# torch goes first: the build uses the one it finds, and looks for the build tools there too.
$(VENV)/%.stamp: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) torch torchvision setuptools cmake ninja pybind11
	$(PIP) -e '.[$*]'
	touch $@

$(BIN)/python:
	for python in $(PYTHON) python3.12 python3.11 python3.13 python3.10; do \
	  if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' \
	      2> /dev/null; then exec $$python -m venv $(VENV); fi; \
	done; \
	echo "no Python >= 3.10 with venv found; set PYTHON=" >&2; exit 1
