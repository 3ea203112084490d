# The front door. Plain make 3.81 and POSIX sh, so that a Mac's own tools are enough.
#   ARGS=…    goes to the command: make demo ARGS=--json
#   PYTHON=…  MLX_BUILD=metal|cpu|cuda12|cuda13   overrule what `make setup` finds

PY := .venv/bin/python
ARGS =
export PYTHON MLX_BUILD

.PHONY: help setup demo test test-portable test-all test-e2e faults reference lint bench speed learning soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv and install draftloop into it (done once; again when pyproject.toml changes)
	@sh scripts/setup.sh

demo: setup ## collect, train and benchmark on the embedded pair: a few minutes, in a temporary directory
	@$(PY) -m src.main demo $(ARGS)

test: setup ## the fast tests, in two processes
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

test-portable: setup ## the fast tests on one core, beside busy processes, with other BLAS kernels and without (an hour)
	@sh scripts/test_portable.sh $(ARGS)

test-all: setup ## every test
	$(PY) -m pytest -m "" $(ARGS)

test-e2e: setup ## the tests that train a small model to the end
	$(PY) -m pytest -m e2e $(ARGS)

faults: setup ## every fault at its full count, and the table of them (a quarter of an hour)
	$(PY) -m pytest tests/faults --full -m "" $(ARGS)

reference: setup ## rebuild the embedded pair from the standard library's text (more than an hour)
	$(PY) -m draftloop.reference.build $(ARGS)

lint: setup ## style, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: setup speed ## measure the closed loop, the gate, drift and speed: benchmarks/results (two and a half hours)
	@$(PY) benchmarks/closed_loop.py $(ARGS)
	@$(PY) benchmarks/gate.py $(ARGS)
	@$(PY) benchmarks/drift.py $(ARGS)

speed: setup ## decoding, collecting, training and the log against what one would run otherwise (over an hour)
	@$(PY) benchmarks/speed_decoding.py $(ARGS)
	@$(PY) benchmarks/speed_collecting.py $(ARGS)
	@$(PY) benchmarks/speed_training.py $(ARGS)
	@$(PY) benchmarks/speed_log.py $(ARGS)

learning: setup ## what is learned by which recipe: benchmarks/results/learning.json (hours; goes on where it was cut off)
	@$(PY) benchmarks/learning.py $(ARGS)

soak: setup ## three unattended rounds over a stream that changes: benchmarks/results/soak.json (ten minutes)
	@$(PY) benchmarks/soak.py $(ARGS)

clean: ## remove caches and build outputs (.venv and data/ stay)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find . -name .venv -prune -o -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
