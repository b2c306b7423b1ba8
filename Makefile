PYTHON ?= python3
VENV   ?= .venv
DEVICE ?= cuda
GPUS   ?= 1
BENCH  ?= save/bench.json
BIN    := $(VENV)/bin
# what the site shows, and what its pages link
SITE   := README.md CONTRIBUTING.md CHANGELOG.md CITATION.cff LICENSE pyproject.toml docs cluster/slurm.sh \
	examples/own_loop.py figures/*.png figures/*.svg
BENCHMARKS := peers loss "loss --growth" "evaluation --growth" "train_step --model resnet20 --rounds 3" data "features --threads 1" "features --threads 2"

# what computes, and kinds of processors as torch, oneDNN and MKL name them, each with all that those before it have
NUMERIC := tests/losses tests/evaluation tests/networks tests/datasets/test_augmentation.py tests/datasets/test_decoding.py \
	tests/datasets/test_color_on_device.py tests/datasets/test_packed.py tests/datasets/rankings/test_make.py
CPUS := default,sse41,SSE4_2,COMPATIBLE avx2,avx2,AVX2,AVX2 avx512,avx512_core,AVX512,AVX512
ON_THREADS = for threads in 1 2; do echo "== $$kind, threads: $$threads"; \
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest $(NUMERIC) -n $$((3 - threads)) --threads $$threads; done

.PHONY: demo docs test test-browser test-cpus test-slow check bench gpu

demo: $(VENV)/.installed
	$(BIN)/python reproduce.py recipes/digits.yaml

test: check
	$(BIN)/python -m pytest

# the page of report.py in Chromium, which the system has, as it has chromedriver: nothing is downloaded
test-browser: $(VENV)/.installed
	$(BIN)/python -m pytest -m browser -n 0

# the numeric tests as other processors compute, as far as this one can, and as itself, on one thread and on two
test-cpus: $(VENV)/.installed
	set -e; own=$$($(BIN)/python -c "import torch; print(torch.backends.cpu.get_cpu_capability().lower())"); \
	for kind in $(CPUS); do IFS=,; set -- $$kind; unset IFS; \
		export ATEN_CPU_CAPABILITY=$$1 ONEDNN_MAX_CPU_ISA=$$2 MKL_ENABLE_INSTRUCTIONS=$$3 MKL_CBWR=$$4; \
		$(ON_THREADS); [ $$1 != $$own ] || break; done
	set -e; kind="as it is"; $(ON_THREADS)

test-slow: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --only-deps ".[oracles]"
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m pytest -m gpu -n 0 --gpu-device cpu --gpus 2

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in build/site. build/pages has the pages as their links expect them, the README without the badges that another
# server draws. build/rince has the modules under the names of the wheel.
# --strict aborts on dead links between pages; mkdocstrings' warnings are looked for here.
docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --only-deps ".[docs]"
	rm -rf .cache build/pages build/rince build/site
	mkdir -p build/pages build/rince
	tar cf - $(SITE) | tar xf - -C build/pages
	sed '/img.shields.io/d' README.md > build/pages/README.md
	cp -R .wheel/__init__.py losses networks evaluation build/rince
	$(BIN)/zensical build --strict 2> build/warnings.txt || { cat build/warnings.txt; exit 1; }
	@! grep griffe build/warnings.txt

# about twelve minutes on two cores, and as much again for benchmarks.evaluation, which is run by itself;
# the results are added to those of $(BENCH), and benchmarks.page makes tables of them
bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --only-deps ".[bench]"
	set -e; for name in $(BENCHMARKS); do echo "== python -m benchmarks.$$name"; \
		$(BIN)/python -m benchmarks.$$name --json $(BENCH); done

# The benchmark runs whether the tests hold, fail or end halfway; the machine is refused where one does not hold, they
# ended without results, or something could not be measured.
gpu: $(VENV)/.installed
	@[ $(DEVICE) = cpu ] || $(BIN)/python -m benchmarks.gpu --check $(GPUS)
	@verdict=accepted; \
	$(BIN)/python -m pytest -m gpu -n 0 --gpu-device $(DEVICE) --gpus $(GPUS) || verdict=refused; \
	$(BIN)/python -m benchmarks.gpu --device $(DEVICE) --out gpu.json || verdict=refused; \
	echo "this machine: $$verdict"; [ $$verdict = accepted ]

# The dependencies alone: an installed `rince` would be a copy of these files that no edit reaches. pip has had
# --only-deps since 26.2. The stamp is newer than pyproject.toml once all is there: a second call reuses the environment.
$(VENV)/.installed: pyproject.toml
	@echo "installing into $(VENV): a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=26.2"
	$(BIN)/python -m pip install --quiet --only-deps ".[scripts,timm,dev]"
	touch $@
