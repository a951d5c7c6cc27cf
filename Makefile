# Every target sets up .venv first if it is missing or older than what it is made from.
PYTHON ?= python3
BIN := .venv/bin
# Tests start many processes; without bytecode each of them would compile the package.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart test test-slow test-wide faults test-gpu bench gpu-checks lint format clean
.DEFAULT_GOAL := quickstart

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "kdbench needs Python 3.11, 3.12 or 3.13; choose one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: .venv/ready  ## one teacher, three students, one table and one report, on embedded data
	$(BIN)/kdbench experiment=quickstart

test: .venv/ready  ## the everyday suite, under three minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

test-slow: .venv/ready  ## real trainings, the wheel, other Pythons, races, engines: 15 to 40 minutes on two cores
	$(BIN)/pytest -m 'slow and alone and not wide and not gpu'
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup -m 'slow and not alone and not wide and not gpu'

test-wide: .venv/ready  ## every further method, network, option and figure of the kinds that the other suites test: before a release
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup -m 'wide and not gpu'

faults: .venv/ready  ## 1,000 faults on real processes and hundreds of random command lines: about an hour on two cores; counts to benchmarks/faults.json
	OMP_NUM_THREADS=1 KDBENCH_FAULTS=1000 KDBENCH_CONFIGS=300 KDBENCH_FAULTS_RECORD=$(CURDIR)/benchmarks/faults.json $(BIN)/pytest -m 'slow or wide' tests/faults

test-gpu: .venv/ready  ## what only a CUDA device can show
	$(BIN)/pytest -m gpu

bench: .venv/ready  ## training speed on the CPU beside a reference trainer, under five minutes on two cores
	$(BIN)/kdbench-bench --set cpu --rounds 3

gpu-checks: .venv/ready  ## all that needs a CUDA device, under nine minutes; writes benchmarks/ and docs/gpu-checks.md
	$(BIN)/python scripts/gpu_checks.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv dist build
