# Two commands: `make demo` (no torch) and `make test` (torch CPU included). Everything lands in .venv.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check lint serve clean

demo: .venv/serving
	.venv/bin/foreframe demo

serve: .venv/serving
	.venv/bin/foreframe serve

test: lint check
	.venv/bin/python -m pytest

check: .venv/dev
	.venv/bin/mypy
	PYTHONPATH=engines:server:clients/python .venv/bin/lint-imports

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

.venv/serving: pyproject.toml clients/python/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable . --editable clients/python
	touch $@

.venv/dev: pyproject.toml clients/python/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable '.[dev]' --editable clients/python
	touch $@ .venv/serving

clean:
	rm -rf .venv demo
