# Two commands do everything on a fresh machine: `make serve` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where pip finds torch, if not where it looks by itself: TORCH_PIP="--index-url ..." picks another
# build (CPU or a CUDA version).
TORCH_PIP ?=
TORCH := torch==2.13.0
THREADS ?= 1
# Processes that run the tests; a file's tests stay in one of them, with what they share.
PROCESSES ?= 2
# Chemprop has an environment of its own: tests compare with it, nothing of ours imports it.
CHEMPROP_VENV ?= work/chemprop
CHEMPROP := chemprop==2.3.1 rdkit==2026.9.1
# KServe's client has one too: its packages and ours do not agree on versions.
KSERVE_VENV ?= work/kserve
KSERVE := kserve==0.21.0 kubernetes-validate==1.37.0
# Ray has one, 240 MB that only one engine of `gmerging screen run` needs; versions are ours.
RAY_VENV ?= work/ray
# gpu-check runs under the machine's own Python; arguments of benchmarks/gpu_check.py go into
# GPU_CHECK.
GPU_PYTHON ?= python3
GPU_CHECK ?=

# What tells most in the least time: layers, laws of the networks, mergers, configurations, HTTP.
FAST := tests/test_architecture.py \
	$(addprefix tests/models/,networks/test_hu2020.py experts/test_unified.py \
		transport/test_twd.py test_artifact.py) \
	$(addprefix tests/merging/,run/test_config.py mergers/test_mergers.py \
		data/test_checkpoints.py) \
	$(addprefix tests/service/,http/routes/test_predictions.py core/test_batcher.py test_settings.py) \
	$(addprefix tests/docs/,test_readme.py test_answers.py test_tables.py)

.PHONY: help serve test test-all check check-fast docs release dist audit labels smoke bench-smoke gpu-pack gpu-check clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

# torch comes first and by exact version, so that nothing else chooses a build of it.
$(VENV)/.service: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH_PIP) $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.service
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[all,dev,docs]"
	touch $@

serve: $(VENV)/.service ## start the service on the released artifact (settings: GMERGING_*, see docs/operate.md)
	$(BIN)/gmerging serve

check: $(VENV)/.dev docs ## style, types, and links of the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev ## the documentation site, in service/site; no network, and every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

check-fast: $(VENV)/.dev ## style and the most telling tests, in less than a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=$(THREADS) $(BIN)/pytest $(FAST)

test: check ## style, types, and all tests but the slow ones and those that need a browser
	OMP_NUM_THREADS=$(THREADS) $(BIN)/pytest -n $(PROCESSES) --dist loadfile -m "not slow and not browser" --cov

labels: $(VENV)/.dev ## write docs/labels from the released models
	$(BIN)/python -m merging.release.label_pages docs/labels models/releases/*

$(CHEMPROP_VENV)/.made: Makefile
	$(PYTHON) -m venv --clear $(CHEMPROP_VENV)
	$(CHEMPROP_VENV)/bin/python -m pip install --quiet $(TORCH_PIP) $(TORCH)
	$(CHEMPROP_VENV)/bin/python -m pip install --quiet $(TORCH) $(CHEMPROP)
	touch $@

$(KSERVE_VENV)/.made: Makefile
	$(PYTHON) -m venv --clear $(KSERVE_VENV)
	$(KSERVE_VENV)/bin/python -m pip install --quiet $(KSERVE)
	touch $@

$(RAY_VENV)/.made: Makefile pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(RAY_VENV)
	$(RAY_VENV)/bin/python -m pip install --quiet $(TORCH_PIP) $(TORCH)
	$(RAY_VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[ray]"
	touch $@

test-all: check $(CHEMPROP_VENV)/.made $(KSERVE_VENV)/.made $(RAY_VENV)/.made ## style, types and every test, those with chemprop, KServe and Ray too
	OMP_NUM_THREADS=$(THREADS) GMERGING_CHEMPROP_PYTHON=$(abspath $(CHEMPROP_VENV)/bin/python) \
		GMERGING_KSERVE_PYTHON=$(abspath $(KSERVE_VENV)/bin/python) \
		GMERGING_RAY_PYTHON=$(abspath $(RAY_VENV)/bin/python) $(BIN)/pytest --cov

release: $(VENV)/.dev ## the offline chain with real data: fine-tune, merge, train adapters, evaluate, write the artifact (about two hours)
	$(BIN)/gmerging release --config gcn_supervised_contextpred_rank10.yaml --seed 1 --processes 2 --threads $(THREADS)

dist: $(VENV)/.dev ## the wheel and the source distribution, in dist/
	$(BIN)/python -m build --quiet

audit: $(VENV)/.dev ## known vulnerabilities of the pinned packages (asks a public database)
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --disable-pip --no-deps --requirement constraints.txt

smoke: ## build and start the containers, predict, ask Prometheus, take them down
	bash deploy/smoke.sh

bench-smoke: $(VENV)/.dev ## is it as fast as on record? ratios, not seconds; a minute, and needs the shared data
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.smoke

gpu-pack: $(VENV)/.dev ## fill .gpu/ (60 MB at most) with what gpu-check needs on a bare machine: wheels, molecules, a teacher
	bash benchmarks/gpu_pack.sh $(BIN)/python

# No environment of its own: a machine with a GPU has its torch and PyG, and often no way to install
# anything.
gpu-check: ## on a machine with a GPU, in at most seven minutes: tests, equality with the CPU, rates, training, service, memory
	bash benchmarks/gpu_check.sh $(GPU_PYTHON) $(GPU_CHECK)

clean: ## remove the environment and caches (not the work folder)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
