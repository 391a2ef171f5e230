# Two commands do everything on a fresh machine: make quickstart, make test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SMOKE := .venv-smoke
WORKDIR ?= runs/quickstart

# Linux on CPU: XLA frees its buffers after every step, and huge pages make taking them again cheap.
# docs/explanation/cpu.md has the figures; elsewhere the setting does nothing.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: help quickstart test docs smoke soak lint audit clean

help:
	@echo "make quickstart   install, train on drawn shapes, evaluate, write a picture (under 5 minutes)"
	@echo "make test         install the test requirements, lint, run all tests"
	@echo "make docs         the documentation as a site in site/; fails on broken links and public names without docstring"
	@echo "make smoke        the package as pip installs it, on another PYTHON=: predict, five steps, evaluation (3 minutes)"
	@echo "make soak         all fuzz cases; break runs many times over, print what was lost (an hour; SOAK_ARGS=--help)"
	@echo "make lint         lint and format check alone"
	@echo "make audit        look the requirements up among known vulnerabilities (needs the network)"
	@echo "make clean        remove $(VENV) and caches; runs/ stays"

quickstart: $(VENV)/installed
	$(BIN)/python train.py --config configs/quickstart.py --workdir $(WORKDIR)
	$(BIN)/python eval.py --workdir $(WORKDIR)

# Three workers for two cores: some tests wait for the processes that they start.
test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 3 --dist loadfile $(PYTEST_ARGS)

# Without a network: no fonts, scripts or inventories of others. tests/test_docs.py builds it too.
docs: $(VENV)/installed-test
	NO_MKDOCS_2_WARNING=1 JAX_PLATFORMS=cpu $(BIN)/python -m mkdocs build --strict --site-dir site

# -P: what is installed is imported, not what lies here.
smoke:
	rm -rf $(SMOKE) build
	$(PYTHON) -m venv $(SMOKE)
	$(SMOKE)/bin/python -m pip install --quiet --disable-pip-version-check .
	$(SMOKE)/bin/python -P tests/helpers/programs/smoke.py $(SMOKE)/smoke
	$(SMOKE)/bin/python -m pip install --quiet --disable-pip-version-check '.[train]'
	$(SMOKE)/bin/python -P train.py --config configs/quickstart.py --workdir $(SMOKE)/run --config.num_steps=5
	$(SMOKE)/bin/python -P eval.py --workdir $(SMOKE)/run
	rm -rf build

soak: $(VENV)/installed-test
	FUZZ=all $(BIN)/python -m pytest -n 2 $(shell find tests -name 'test_fuzz_*.py')
	$(BIN)/python tests/soak/soak.py $(SOAK_ARGS)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# --strict: else packages that could not be looked up are skipped, and nothing found would mean nothing.
audit:
	test -x $(VENV)/audit/bin/python || $(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(VENV)/audit/bin/pip-audit --strict -r requirements.txt

$(VENV)/installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing what requirements.txt names into $(VENV): 1.3 GB, a few minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-test: requirements.txt requirements-test.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing what requirements-test.txt names into $(VENV), PyTorch included: a few minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) $(SMOKE) .jax_cache .mypy_cache .pytest_cache .ruff_cache build dist site *.egg-info
