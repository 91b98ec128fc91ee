# Two commands are ever needed: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
STAMP := $(VENV)/.specdec
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml specdec_kernels/_schema.py
HAS_GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)
# A torch of the system, where there is one that is new enough, is used as it is.
SYSTEM_TORCH := $(shell $(PYTHON) -c "import importlib.metadata as m; v = m.version('torch').split('.'); print(int((int(v[0]), int(v[1])) >= (2, 11)))" 2>/dev/null)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MAX_JOBS ?= $(shell nproc 2>/dev/null || echo 2)
PIP := $(BIN)/python -m pip install --quiet

.PHONY: demo test lint bench test-package test-sanitize test-soak clean

demo: $(STAMP)/demo
	$(BIN)/specdec demo $(DEMO_OPTIONS)

test: $(STAMP)/test
	$(BIN)/python -m pytest $(TEST_OPTIONS)

lint: $(STAMP)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror

bench: $(STAMP)/demo
	$(BIN)/specdec bench all $(BENCH_OPTIONS)

# Wheel and sdist, built and tested outside the checkout.
test-package: $(STAMP)/test
	$(BIN)/python -m pytest tests/package -m package -p no:cacheprovider

# The C++ tests under the address and undefined-behaviour sanitizers, on every instruction set of this machine.
test-sanitize: $(STAMP)/venv
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DSPECDEC_MODULES=OFF \
	  -DSPECDEC_TESTS=ON -DSPECDEC_SANITIZE=address,undefined
	$(BIN)/cmake --build build/sanitize -j $(MAX_JOBS)
	cd build/sanitize && $(abspath $(BIN))/ctest --output-on-failure

# New random examples, many of each.
test-soak: $(STAMP)/test
	$(BIN)/python -m pytest --hypothesis-profile soak tests/agreement $(TEST_OPTIONS)

clean:
	rm -rf build dist *.egg-info specdec_kernels/*.so

# ---- installation, in steps that are repeated only when something that they need has changed -------------------------

$(STAMP)/venv: pyproject.toml
	@test -x $(BIN)/python || { echo "creating $(VENV)"; \
	  $(PYTHON) -m venv $(if $(filter 1,$(SYSTEM_TORCH)),--system-site-packages) $(VENV); }
	@mkdir -p $(STAMP)
	@echo "installing torch and the build tools (about a minute the first time)"
	@$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) "$(TORCH)"
	@$(PIP) "setuptools>=70" wheel "cmake>=3.24" ninja numpy "rich>=13" "safetensors>=0.4" "tokenizers>=0.20" "typer>=0.12"
	@touch $@

# The demo needs the CUDA module only where there is a GPU, and then for that GPU.
$(STAMP)/demo: $(STAMP)/venv $(SOURCES)
	@echo "building the kernels"
	@SPECDEC_CUDA=$(if $(filter-out 0,$(HAS_GPU)),auto,0) \
	  $(if $(filter-out 0,$(HAS_GPU)),SPECDEC_CUDA_ARCHS=$(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d . | sed 's/^90$$/90a/;s/^100$$/100a/')) \
	  $(PIP) --no-build-isolation --no-deps -e .
	@touch $@

# The tests build the CUDA module wherever there is an nvcc, for one architecture.
$(STAMP)/test: $(STAMP)/venv $(SOURCES)
	@echo "building the kernels, and installing the test tools"
	@$(PIP) "hypothesis>=6.100" "pytest>=8" "pytest-xdist>=3.5" "scipy>=1.11" "transformers>=4.51"
	@SPECDEC_CUDA=auto SPECDEC_CUDA_ARCHS=$${SPECDEC_CUDA_ARCHS:-90a} $(PIP) --no-build-isolation --no-deps -e .
	@touch $@ $(STAMP)/demo

$(STAMP)/lint: $(STAMP)/venv
	@$(PIP) "clang-format>=18" "mypy>=1.11" "ruff>=0.6"
	@touch $@
