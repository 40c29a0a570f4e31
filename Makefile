# Two commands: `make demo` (no torch) and `make test` (torch CPU included). Everything lands in .venv.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
NUM_TESTERS ?= $(shell n=$$(nproc 2>/dev/null || echo 3); echo $$((n > 4 ? 4 : n < 3 ? 3 : n)))
# Another project's client as it is published, in an environment of its own because it needs an older NumPy. It does not
# name typing-extensions, which it needs too.
OPENPI = openpi-client==0.1.2 numpy==1.26.4 dm-tree==0.1.10 msgpack==1.2.4 pillow==13.0.0 websockets==17.4 \
	typing-extensions==4.16.0

# Tests start hundreds of interpreters, and each would compile everything again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test together chaos check lint serve clean lock audit sbom peers docs

demo: .venv/serving
	.venv/bin/foreframe demo

serve: .venv/serving
	.venv/bin/foreframe serve

# Files with tests that run alone: reading all others takes longer than some of these tests.
ALONE = $(shell grep -rlE 'best_lag|mark\.alone' tests --include='test_*.py')

# First what measures times and memory, in one process with nothing beside it; then everything else, with the types.
# pip compiles nothing, since most of what it installs is never imported; the rest is compiled as it is.
test: export PIP_COMPILE = 0
test:
	mkdir -p .venv
	$(MAKE) --jobs 2 lint .venv/openpi
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m alone $(ALONE)
	$(MAKE) --jobs 2 check together

# A process for each core, three or four, each with whole files and one thread: two cores are busy while one waits for
# servers. Files come by name, since those with the most tests are not the longest.
together: .venv/dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m 'not alone and not long' --numprocesses $(NUM_TESTERS) \
		--dist loadfile --no-loadscope-reorder

# Servers killed, stopped and starved for twenty minutes; writes docs/reliability.md. First what `test` leaves out.
chaos: .venv/dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m long
	PYTHONPATH=tests/chaos OMP_NUM_THREADS=1 .venv/bin/python -m harness --docs docs

# foreframe beside other servers on the same work, each in an environment of its own; writes docs/peers.md. What is not
# installed or measured yet is; ARGS='--only mosec --again' and so on. On a quiet machine, in about 15 minutes.
peers: .venv/dev
	PYTHONPATH=tests/bench .venv/bin/python -m peers --out docs/results/peers.json --markdown docs/peers.md $(ARGS)

check: .venv/dev
	.venv/bin/mypy
	cd docs/site && ../../.venv/bin/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache conf.py \
		api_page.py
	PYTHONPATH=engines:server:clients/python .venv/bin/lint-imports

# The pages as a site in dist/site; a link that leads nowhere stops it.
docs: .venv/dev
	.venv/bin/python -m sphinx -b html -W --keep-going -q -c docs/site -d dist/doctrees docs dist/site

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

# What images install, with the hashes of everything: in the versions of constraints.txt, so regenerate that first.
LOCK = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-annotate --constraints constraints.txt
lock: .venv/dev
	$(LOCK) --extra otel pyproject.toml --output-file deploy/locks/serving.txt
	$(LOCK) --extra otel --extra gpu --no-emit-package onnxruntime pyproject.toml deploy/locks/gpu.in \
		--output-file deploy/locks/gpu.txt
	$(LOCK) clients/python/pyproject.toml --output-file deploy/locks/client.txt
	$(LOCK) deploy/locks/build.in --output-file deploy/locks/build.txt

# Fails on a known vulnerability that no dated exception covers, and with 3 where nothing could be looked up.
audit: .venv/dev
	.venv/bin/python deploy/supply_chain/audit.py deploy/locks/serving.txt deploy/locks/gpu.txt \
		deploy/locks/client.txt deploy/locks/build.txt

sbom: .venv/dev
	mkdir -p dist
	for kind in serving gpu; do .venv/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
		--output-file dist/foreframe-$$kind.cdx.json deploy/locks/$$kind.txt || exit 1; done

clean:
	rm -rf .venv demo
