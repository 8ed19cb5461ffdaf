# Each target works in a clean clone with Python >= 3.10, git and make; the first one builds .venv.
# Another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
PY := .venv/bin/python
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: demo test test-faults test-properties soak lint docs bench-blocks bench-callbacks bench-checkpoints bench-diagnosis test-matrix docs-figures test-tasks test-site lock clean help

demo: .venv/installed  ## generate a project, check it, train it, test it; another task than vision: make demo TASK=language
	$(PY) scripts/demo.py $(TASK)

# A file's tests stay together: they share what is slow to make, such as a generated project.
test: .venv/installed  ## run every test, two files at a time
	$(PY) -m pytest -n 2 --dist loadfile

test-faults: .venv/installed  ## kill, cut and starve real runs; print fault, tries, lost steps, outcome
	$(PY) -m pytest tests/faults tests/recovery tests/cli/test_verify_resume.py tests/cli/test_verify_resume_whole.py -m ""

test-properties: .venv/installed  ## 12,000 random schedules, losses, plans and configurations: no NaN, no traceback
	$(PY) -m pytest tests/properties -m properties

soak: .venv/installed  ## 200,000 steps with all callbacks on: memory, handles, threads, hooks and the log, an hour
	$(PY) -m pytest tests/soak -m soak -s

test-matrix: .venv/installed  ## every task of the template with every logger: lint, types, its tests, all commands
	$(PY) -m pytest -m matrix

test-tasks: .venv/installed  ## train every task of the template to its level, minutes each
	$(PY) -m pytest -m tasks tests/template

lint: .venv/installed  ## style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: .venv/installed-docs  ## build docs/_build/html; a warning is an error
	$(PY) -m sphinx -W --keep-going --quiet -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

test-site: docs  ## open the built pages in a headless browser, and run the shell blocks of all pages
	$(PY) -m pytest -m site tests/docs

docs-figures: .venv/installed  ## every picture and number of docs/ anew; fails where a page is no longer right
	@set -e; for script in docs/figures/[!_]*.py docs/figures/foundations/[!_]*.py; do \
		echo "$$script"; PYTHONPATH=plugins OMP_NUM_THREADS=1 $(PY) "$$script"; done

bench-blocks: .venv-bench/installed  ## speed and memory of the building blocks beside torch and other libraries
	PYTHONPATH=plugins .venv-bench/bin/python benchmarks/blocks.py

bench-callbacks: .venv/installed  ## what callbacks cost beside the bare Trainer and beside Lightning's and wandb's own
	$(PY) benchmarks/callbacks.py

bench-checkpoints: .venv/installed  ## what a verified checkpoint of 500 MB costs beside Lightning's own save
	$(PY) benchmarks/checkpoints.py

bench-diagnosis: .venv-diagnosis/installed  ## faults found and false alarms of the preflight beside other tools, an hour
	PYTHONPATH=plugins:tests .venv-diagnosis/bin/python benchmarks/diagnosis.py $(ARGS)

# Nothing younger than two days: a malicious release is usually found sooner.
lock: .venv-lock/installed  ## requirements.lock anew: every package of the tested set by version and hash
	.venv-lock/bin/uv pip compile pyproject.toml --extra dev --extra docs -c constraints.txt --quiet --upgrade \
		--universal --python-version 3.11 --generate-hashes --no-annotate --exclude-newer "2 days" \
		--custom-compile-command "make lock" -o requirements.lock

clean:  ## remove what the targets built, .venv included; runs/ is yours and stays
	rm -rf .venv .venv-bench .venv-diagnosis .venv-lock build dist demo docs/_build .mypy_cache .pytest_cache .ruff_cache
	find plugins tests scripts template docs -name __pycache__ -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' Makefile

# The stamps lie in .venv, so that they go with it.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: firstlight needs Python 3.10 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(PY) && $(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(INSTALL) -e '.[dev]'
	@touch $@

.venv/installed-docs: .venv/installed
	$(INSTALL) -e '.[docs]'
	@touch $@

# A place of its own, since peers want other versions than we test. timm and pytorch-metric-learning come without what
# they depend on: torchvision from PyPI does not import beside the CPU build of torch, and the benchmark needs none of it.
.venv-bench/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-bench
	@echo '*' > .venv-bench/.gitignore
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy scikit-learn tqdm
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps \
		timm==1.0.31 pytorch-optimizer==4.1.0 pytorch-metric-learning==2.9.0
	@touch $@

# neural-net-checklist comes without what it depends on, for the same reason; of it the benchmark needs tqdm and pillow.
.venv-diagnosis/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-diagnosis
	@echo '*' > .venv-diagnosis/.gitignore
	.venv-diagnosis/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . \
		scikit-learn torch-audit==0.3.0 torchmortem==0.1.1 tqdm pillow
	.venv-diagnosis/bin/python -m pip install --quiet --disable-pip-version-check --no-deps neural-net-checklist==1.1.0
	@touch $@

.venv-lock/installed:
	$(PYTHON) -m venv --clear .venv-lock
	@echo '*' > .venv-lock/.gitignore
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@touch $@
