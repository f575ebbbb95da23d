# Thin targets: what CI calls is what you call.

PYTHON   ?= python3
MODEL    ?=
CHECKPOINT ?=
TARGET   ?= torchscript,onnx,aoti
LAYERS   ?=
OUT      ?=
ARTIFACT ?= artifacts/esm2_t6_8M_UR50D-synthetic
# For gpu-check: a folder with wheels of what is not installed, and options such as --with-3b.
WHEELS   ?=
GPU_ARGS ?=
# For bench-compare: two files of results, and options such as --tolerance 0.2 --base fair_esm.
OLD      ?=
NEW      ?=
COMPARE_ARGS ?=
# For native-check, the seed of its packs (the time, if there is none); for torture, of its moments;
# for fuzz, of its mutations.
SEED     ?=
# Of each of the campaigns of fuzz.
COPIES   ?= 2100
# What deploy/hashes.txt is of; TensorRT's own wheels are on another index.
IMAGE_EXTRAS := onnx onnx-gpu torch tensorrt-rtx hdf5 parquet server trust
# For release: the oldest and the newest Python that are named in pyproject.toml.
OLDEST   ?= python3.10
NEWEST   ?= python3.13
# Workers with whole files: what is dear to make is made once (tests/conftest.py). Three on two cores,
# for some wait for servers and for each other. Each with one thread, or their pools would wait for
# each other's; those of commands that take more wait asleep, not at work.
TEST_ARGS ?= -n 3 --dist loadfile
TEST       = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest
# For example: make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=

# Where the environment forbids it to keep what it compiled, Python compiles torch at each start:
# 3 s instead of 1.5, and 6 more where its compiler is asked for.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN  := $(VENV)/bin
READY := $(VENV)/.ready
GPU_PACKAGES := .gpu-packages

SOURCE := $(if $(MODEL),--model $(MODEL),$(if $(CHECKPOINT),--checkpoint $(CHECKPOINT),--synthetic esm2_t6_8M_UR50D))

# Each plan of benchmarks/plans.py with its artifacts, synthetic weights of the true architectures.
BENCH      := esm2_t6_8M_UR50D esm2_t12_35M_UR50D
BENCH_FULL := $(BENCH) esm2_t30_150M_UR50D
MACHINE_PEERS := fair_esm esmcpp_float32 esmcpp_int8

PARITY := parity-float32 parity-float16 parity-bfloat16

.DEFAULT_GOAL := help
.PHONY: help setup export verify parity $(PARITY) test test-all bench bench-full bench-machine bench-compare bench-install gpu-check native-check cuda-check torture fuzz audit hashes images docs release lint clean

help:    ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make export MODEL=esm2_t33_650M_UR50D     a model by fair-esm's name"
	@echo "  make export CHECKPOINT=FILE.pt|FOLDER|NAME  fair-esm's file, Hugging Face's folder or name"
	@echo "  make export TARGET=onnx LAYERS=6,12       which engines, which layers"
	@echo "  make gpu-check PYTHON=python3.12 WHEELS=FOLDER GPU_ARGS=--with-3b"

setup: $(READY)    ## Make .venv with everything for export, run and test

# Compiled is what every command would else compile at its start, on all cores; all takes a minute.
COMPILED := torch sympy onnx onnxscript onnx_ir numpy matplotlib
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q -j 0 -x torch/testing $(COMPILED:%=$(VENV)/lib/python*/site-packages/%)
	@touch $@

export: $(READY)    ## Build an artifact; synthetic 8M weights without MODEL or CHECKPOINT
	$(BIN)/esm2-export build $(SOURCE) --target $(TARGET) $(if $(LAYERS),--layers $(LAYERS)) $(if $(OUT),--out $(OUT))

parity: $(PARITY)    ## Prove the gate: three dtypes, several layers, pooling, planted faults

# In half precision faults are planted in TorchScript alone, to stay under 10 minutes on 2 cores.
parity-float16 parity-bfloat16: PROVE_ARGS := --prove-in torchscript
$(PARITY): parity-%: $(READY)
	$(BIN)/esm2-export build --synthetic esm2_t6_8M_UR50D --dtype $* --layers 0,3,6 --pool mean \
	    --prove $(PROVE_ARGS) --jobs 2 --out artifacts/parity-8M-$*

verify: $(READY)    ## Compare the engines of ARTIFACT with eager fair-esm in float64
	$(BIN)/esm2-export verify $(ARTIFACT) $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT))

test: $(READY)    ## Run the tests that take seconds each: after every change
	$(TEST) $(TEST_ARGS) -m "not slow"

test-all: $(READY)    ## Run all tests
	$(TEST) $(TEST_ARGS)

bench: $(READY) $(BENCH:%=artifacts/%-synthetic/manifest.json)    ## Measure every engine, the peers and the limit
	$(BIN)/python -m benchmarks --plan bench --pip-args "$(PIP_ARGS)" --docs $(BENCH:%=artifacts/%-synthetic)
	$(BIN)/python -m benchmarks.packing --repeats 1

# Peers in int8 are among them, and so is the engine to hold beside.
bench-full bench-machine: TARGET := $(TARGET),onnx-int8

bench-full: $(READY) $(BENCH_FULL:%=artifacts/%-synthetic/manifest.json)    ## The same and 150M, longer, with a stream of 1M tokens
	$(BIN)/python -m benchmarks --plan full --pip-args "$(PIP_ARGS)" --docs $(BENCH_FULL:%=artifacts/%-synthetic)

bench-machine: $(READY) $(BENCH:%=artifacts/%-synthetic/manifest.json)    ## Measure briefly, add this machine to docs/performance/machines
	$(BIN)/python -m benchmarks --plan machine --machine-row $(MACHINE_PEERS:%=--peer %) --pip-args "$(PIP_ARGS)" $(BENCH:%=artifacts/%-synthetic)

bench-compare: $(READY)    ## Compare two runs, OLD and NEW (benchmarks/results/*.json); fails if slower
	$(BIN)/python -m benchmarks.compare $(OLD) $(NEW) $(COMPARE_ARGS)

bench-install: $(READY) $(ARTIFACT)/manifest.json    ## Measure pip install '.[onnx]' in an empty environment
	$(BIN)/python -m benchmarks.fresh_install $(ARTIFACT)

# With the packages of PYTHON itself: the PyTorch and the flash-attn that fit the card are there.
gpu-check:    ## Prove and measure every engine on this machine's GPU; no network, no .venv
	$(if $(WHEELS),$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
	    --upgrade --target $(GPU_PACKAGES) $(wildcard $(WHEELS)/*.whl))
	PYTHONPATH="$(CURDIR):$(CURDIR)/$(GPU_PACKAGES):$$PYTHONPATH" $(PYTHON) -m benchmarks.gpu_check $(GPU_ARGS)

native-check: $(READY)    ## Check the C++ kernels against float64, on each instruction set, under sanitizers
	$(BIN)/python -m tests.native.check $(if $(SEED),--seed $(SEED))

cuda-check: $(READY)    ## Count what engines ask of a card, without one: launches, copies, waits, bytes
	$(BIN)/python -m tests.cuda.check

torture: $(READY)    ## End runs at random moments, go on with them, compare every bit
	$(BIN)/python -m tests.dataset.torture $(if $(SEED),--seed $(SEED))

fuzz: $(READY) artifacts/fuzz/manifest.json    ## Load thousands of changed artifacts, each in a process of its own
	$(BIN)/python -m pytest tests/fuzz --hypothesis-profile fuzz
	$(BIN)/python -m tests.fuzz.campaign artifacts/fuzz --copies $(COPIES) $(if $(SEED),--seed $(SEED))

artifacts/fuzz/manifest.json: | $(READY)
	$(BIN)/python -m tests.fuzz.artifact artifacts/fuzz

audit: $(READY)    ## Look up known vulnerabilities of what is locked; writes docs/audit.md
	deploy/audit.sh $(BIN)/pip-audit

# uv reads the hashes of files from the index; it downloads none of them.
LOCK := $(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-annotate --custom-compile-command \
    "make hashes" -c constraints.txt -c deploy/constraints.txt --python-version 3.12 \
    --python-platform x86_64-manylinux_2_28
hashes: $(READY)    ## Write the SHA-256 of every file that images may install
	$(LOCK) pyproject.toml $(IMAGE_EXTRAS:%=--extra %) --output-file deploy/hashes.txt
	$(LOCK) deploy/build.in --output-file deploy/build.txt

images: $(READY)    ## Build and try the images with buildah, without a daemon; as root, on Debian
	$(BIN)/python -m pytest tests/deploy -rs

artifacts/%-synthetic/manifest.json: | $(READY)
	$(BIN)/esm2-export build --synthetic $* --target $(TARGET)

release: $(READY) $(ARTIFACT)/manifest.json    ## Build dist/, and try the wheel on the OLDEST and the NEWEST Python
	rm -rf dist
	$(BIN)/python -m build --outdir dist . > /dev/null
	deploy/check_release.sh dist/*.whl $(ARTIFACT) $(OLDEST) constraints-oldest.txt
	deploy/check_release.sh dist/*.whl $(ARTIFACT) $(NEWEST)
	ls -l dist

docs: $(READY)    ## Build the site into build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: $(READY)    ## Style, types, which module may import which, workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml examples/ci/*.yml

clean:    ## Remove .venv, artifacts and caches
	rm -rf $(VENV) $(GPU_PACKAGES) gpu-report build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf benchmarks/.environments benchmarks/.checkpoints examples/cpp/build examples/node/node_modules
	find artifacts -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
