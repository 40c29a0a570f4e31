# Two commands: `make demo` (no torch) and `make test` (torch CPU included). Everything lands in .venv.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Another project's client as it is published, in an environment of its own because it needs an older NumPy. It does not
# name typing-extensions, which it needs too.
OPENPI = openpi-client==0.1.2 numpy==1.26.4 dm-tree==0.1.10 msgpack==1.2.4 pillow==13.0.0 websockets==17.4 \
	typing-extensions==4.16.0

.PHONY: demo test check lint serve clean

demo: .venv/serving
	.venv/bin/foreframe demo

serve: .venv/serving
	.venv/bin/foreframe serve

# Two processes, each with whole files, and one thread for each: so many share two cores without stealing each other's.
# What measures the event loop's standstill comes first and by itself.
test: lint check .venv/openpi
	.venv/bin/python -m pytest -m alone
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m 'not alone' --numprocesses 2 --dist loadfile

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

# Where it cannot be installed, as on a Python that NumPy 1 has no wheel for, its tests are skipped and say so.
.venv/openpi: Makefile
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: $(OPENPI) \
		&& touch $@ || rm -rf $@

clean:
	rm -rf .venv demo
