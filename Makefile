# make demo          set up, run the whole chain on the bundled data and model, show what came out
# make demo-real     the same with a real model: SmolLM2-135M-Instruct (95 MB, of a package), in some
#                    twenty minutes on two cores; the report says what it learned and what it forgot
# make test          set up, run every test that needs neither a GPU nor a browser; JOBS=2 at once, in
#                    processes of up to 4 GiB each
# make test-gpu      the tests that need GPUs: one for most, two and four for the layouts
# make test-browser  the chat page in a headless Chromium: Debian's (apt-get install chromium),
#                    Chrome, or Playwright's own (.venv/bin/playwright install chromium)
# make check         lint, format, types
# make coverage      the tests of `make test`, with the share of the package's lines that they run
# make docs          the documentation site, in site/; writes docs/settings.md anew
# make versions      record the code of each stage after a change that leaves its results the same;
#                    NEW="finetune merge" raises their versions, as after one that does not
# make patches       write docs/patches.md, and compare the patches on library code with what is installed
# make lock          resolve pyproject.toml into the hashed lock files
# make audit         the locked packages against the vulnerability database (needs the internet)
#
# EXTRA="gcs …" also installs capabilities with libraries of their own; `stage=doctor` lists them.
# TORCH=cpu or TORCH=cuda chooses torch's build; by default CUDA where a GPU is, else the CPU wheel if
# one of pip's indexes or folders (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL) has it.

PYTHON ?= python3
BIN := .venv/bin
TORCH ?= auto
JOBS ?= 2
# The tests of a file run in one process, which shares what they prepare; in the order of a single one.
# One thread a process: threads that wait for a core in use would spin, and take ten times as long.
PYTEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE \
         $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
# Some environments switch bytecode off; then every stage would compile NeMo's sources again.
unexport PYTHONDONTWRITEBYTECODE
LOCKS := requirements.lock requirements-cpu.lock requirements-cuda.lock

.PHONY: setup demo demo-real test test-gpu test-browser check coverage docs versions patches lock audit

setup: .venv/.installed $(EXTRA:%=.venv/.extra-%)

demo: setup
	$(BIN)/python -m pipeline stage=all

demo-real: setup .venv/.extra-smollm2
	$(BIN)/python -m tools.smollm2 models/SmolLM2-135M-Instruct
	$(BIN)/python -m pipeline stage=all experiment=smollm2_135m

test: setup
	$(PYTEST)

test-gpu: setup
	$(BIN)/python -m pytest tests/gpu tests/integration/test_finetune.py tests/integration/test_conversion.py

test-browser: setup tests/browser/node_modules
	$(BIN)/python -m pytest tests/browser

tests/browser/node_modules: tests/browser/package-lock.json
	npm ci --prefix tests/browser --no-audit --no-fund

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

coverage: setup
	$(PYTEST) --cov --cov-report=term --cov-report=html

docs: setup
	$(BIN)/python -m tools.settings_reference
	$(BIN)/python -m tools.metric_table
	$(BIN)/python -m tools.reader_table
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

versions: setup
	$(BIN)/python tools/versions.py $(if $(NEW),--new $(NEW))

patches: setup
	$(BIN)/python tools/patches.py

lock: setup
	$(BIN)/python tools/lock.py

audit: setup
	$(BIN)/python -m pip_audit --disable-pip --require-hashes -r requirements.lock -r requirements-cuda.lock

.venv/.extra-%: extras/%.lock tools/setup_extra.sh .venv/.installed
	PYTHON="$(PYTHON)" sh tools/setup_extra.sh $*
	touch $@

extras/%.lock:
	@echo "make: there is no extra '$*': EXTRA takes $(patsubst extras/%.lock,%,$(wildcard extras/*.lock))" >&2; exit 2

.venv/.installed: $(LOCKS) tools/setup.sh
	PYTHON="$(PYTHON)" TORCH="$(TORCH)" sh tools/setup.sh
	touch $@
