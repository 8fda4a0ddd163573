# Every target sets up what it needs in .venv; the first time takes some minutes, later ones seconds.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
# One torch thread a process: networks this small are slower on two, and results repeat to the bit.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test test-all lint protos bench clean

help:
	@echo "make demo      start a server, teach it two tasks, classify, export, show a picture of it"
	@echo "make test      all tests (under 10 minutes on two cores)"
	@echo "make test-all  the slow ones too"
	@echo "make lint      ruff, mypy --strict, import-linter"
	@echo "make protos    generate protos/metanas_proto from protos/metanas and protos/inference"
	@echo "make bench     measure adaptation, classification and meta-training on this machine"
	@echo "make clean     remove .venv and caches"

$(READY): pyproject.toml
	@echo "==> setting up .venv with $(PYTHON): torch, onnxruntime, tensorrt-rtx, grpcio and tools (a few minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@# Without its dependencies: its pins ask for a torch of 2021.
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps torchmeta==1.8.0
	@touch $(READY)

demo: $(READY)
	@$(BIN)/python examples/demo.py --output demo_output

# Tests of servers and clients measure times, so they have the machine to themselves.
test: $(READY)
	@echo "==> running all tests: first what can share the machine, then servers and clients"
	@$(BIN)/pytest --numprocesses auto tests/core tests/training tests/export tests/protos
	@$(BIN)/pytest tests/serving tests/clients tests/examples tests/benchmarks

test-all: $(READY)
	@$(BIN)/pytest -m "slow or not slow"

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

protos: $(READY)
	@$(BIN)/python protos/generate.py

bench: $(READY)
	@$(BIN)/python benchmarks/speed.py --output benchmarks/results

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache demo_output
