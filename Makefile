# Two commands do everything on a fresh machine with Python 3.11+ and make:
#   make demo   sets up .venv and runs the main job
#   make test   sets up .venv and passes the tests
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
WB := $(BIN)/wb

.PHONY: install demo test lint bench clean
install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[run,kernels,gpu-tables,cpsat,onnxruntime,dask,slurm,notebooks,dev]'
	touch $@

demo: install
	$(WB) report placement --runs demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2

bench: install
	for module in tests/bench/[a-z]*.py; do $(BIN)/python -m $$(echo $${module%.py} | tr / .) || exit 1; done

clean:
	rm -rf .venv build *.egg-info demo .pytest_cache .mypy_cache .ruff_cache
