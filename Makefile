# Two commands: `make demo` (no torch) and `make test` (torch CPU included). Everything lands in .venv.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check lint serve clean

demo: .venv/serving
	.venv/bin/foreframe demo

serve: .venv/serving
	.venv/bin/foreframe serve

# Two processes, each with whole files, and one thread for each: so many share two cores without stealing each other's.
test: lint check
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses 2 --dist loadfile

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
