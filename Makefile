# Two commands are ever needed: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
STAMP := $(VENV)/.specdec
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml specdec_kernels/_schema.py
# The architecture of the GPU of this machine, such as 90a; empty where there is none.
GPU_ARCH := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null \
  | sed -n 's/^\([0-9]*\)\.\([0-9]\)$$/\1\2/p' | sed 's/^90$$/90a/;s/^100$$/100a/' | head -n 1)
CUDA_ARCHS := $(or $(SPECDEC_CUDA_ARCHS),$(GPU_ARCH),90a)
# A name for what the modules are built for: with another one they are built again.
BUILT_FOR := $(STAMP)/for-$(if $(GPU_ARCH),gpu,cpu)-$(subst ;,-,$(CUDA_ARCHS))
# What torch brings where it is built for GPUs.
TRITON ?= "triton>=3.6"
# A torch of the system, where there is one that is new enough, is used as it is.
SYSTEM_TORCH := $(shell $(PYTHON) -c "import importlib.metadata as m; v = m.version('torch').split('.'); print(int((int(v[0]), int(v[1])) >= (2, 11)))" 2>/dev/null)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MAX_JOBS ?= $(shell nproc 2>/dev/null || echo 2)
# Processes that share the tests.
TEST_JOBS ?= 2
PIP := $(BIN)/python -m pip install --quiet

.PHONY: demo test lint bench gpu-check test-package test-sanitize test-soak clean

demo: $(STAMP)/demo
	$(BIN)/specdec demo $(DEMO_OPTIONS)

test: $(STAMP)/test
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal $(TEST_OPTIONS)

lint: $(STAMP)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror

bench: $(STAMP)/demo
	$(BIN)/specdec bench all $(BENCH_OPTIONS)

# On a machine with a GPU, with what is installed there: builds in place, checks, measures, and downloads nothing.
gpu-check:
	$(PYTHON) tests/gpu/check.py $(if $(OUT),--out "$(OUT)") $(GPU_CHECK_OPTIONS)

# Wheel and sdist, built and tested outside the checkout.
test-package: $(STAMP)/test
	$(BIN)/python -m pytest tests/package -m package -p no:cacheprovider

# The C++ tests under the address and undefined-behaviour sanitizers, on every instruction set of this machine.
test-sanitize: $(STAMP)/venv
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DSPECDEC_MODULES=OFF \
	  -DSPECDEC_TESTS=ON -DSPECDEC_SANITIZE=address,undefined
	$(BIN)/cmake --build build/sanitize -j $(MAX_JOBS)
	cd build/sanitize && $(abspath $(BIN))/ctest --output-on-failure --timeout 300

# New random examples, many of each; and 10,000 requests through the overlapped loop.
test-soak: $(STAMP)/test
	$(BIN)/python -m pytest --hypothesis-profile soak tests/agreement tests/decoding/test_overlapped_pages.py $(TEST_OPTIONS)

# The stamps say that the modules are there.
clean:
	rm -rf build dist *.egg-info specdec_kernels/*.so $(STAMP)/demo $(STAMP)/test $(STAMP)/for-*

# ---- installation, in steps that are repeated only when something that they need has changed -------------------------

$(STAMP)/venv: pyproject.toml
	@test -x $(BIN)/python || { echo "creating $(VENV)"; \
	  $(PYTHON) -m venv $(if $(filter 1,$(SYSTEM_TORCH)),--system-site-packages) $(VENV); }
	@mkdir -p $(STAMP)
	@echo "installing torch and the build tools (about a minute the first time)"
	@$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) "$(TORCH)"
	@$(PIP) "setuptools>=77" wheel "cmake>=3.24" ninja numpy "rich>=13" "safetensors>=0.4" "tokenizers>=0.20" "typer>=0.12"
	@touch $@

$(BUILT_FOR):
	@mkdir -p $(STAMP) && rm -f $(STAMP)/for-* && touch $@

BUILD = SPECDEC_CUDA_ARCHS='$(CUDA_ARCHS)' $(PIP) --no-build-isolation --no-deps -e .

# The demo needs the CUDA module only where there is a GPU. Without one setup.py removes an older one, and then the tests
# must build it again.
$(STAMP)/demo: $(STAMP)/venv $(BUILT_FOR) $(SOURCES)
	@echo "building the kernels"
	@rm -f $(STAMP)/test
	@SPECDEC_CUDA=$(if $(GPU_ARCH),auto,0) $(BUILD)
	@touch $@

# The tests build the CUDA module wherever there is an nvcc, and the emulated one, for which CUDA's headers come from
# packages where there is no toolkit. The demo has what it needs then, too.
CUDA_HEADERS := $(if $(shell command -v nvcc 2>/dev/null),,nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl)
$(STAMP)/test: $(STAMP)/venv $(BUILT_FOR) $(SOURCES)
	@echo "building the kernels, and installing the test tools"
	@$(PIP) "hypothesis>=6.100" "pytest>=8" "pytest-xdist>=3.5" "matplotlib>=3.8" "scipy>=1.11" "transformers>=4.51" $(TRITON) $(CUDA_HEADERS)
	@SPECDEC_EMULATOR=1 SPECDEC_CUDA=auto $(BUILD)
	@touch $@ $(STAMP)/demo

$(STAMP)/lint: $(STAMP)/venv
	@$(PIP) "clang-format>=23.1,<23.2" "mypy>=2.4,<2.5" "ruff>=0.17,<0.18"
	@touch $@
