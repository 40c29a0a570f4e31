# syntax=docker/dockerfile:1
# Two images from one file: `docker build --target cpu .` and `docker build --target gpu .`.
#
# The base is named by tag, because a digest is only worth something where it was looked up: give the one that you have
# checked with `--build-arg PYTHON_IMAGE=python:3.11-slim@sha256:...`. Everything installed on top is locked by hash.
ARG PYTHON_IMAGE=python:3.11-slim

# The wheel, built with locked tools from the files that .dockerignore lets through.
FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /build
COPY deploy/locks/build.txt deploy/locks/build.txt
RUN python -m venv /build/tools
RUN /build/tools/bin/python -m pip install --require-hashes --only-binary :all: --requirement deploy/locks/build.txt
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY engines engines
COPY server server
RUN /build/tools/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /build/dist .

# What runs: an environment without pip, as the image has no use for installing anything.
FROM ${PYTHON_IMAGE} AS cpu-environment
COPY deploy/locks/serving.txt /build/requirements.txt
RUN python -m venv --without-pip /opt/foreframe
RUN python -m pip --python /opt/foreframe install --require-hashes --only-binary :all: --requirement /build/requirements.txt
COPY --from=wheel /build/dist /build/dist
RUN python -m pip --python /opt/foreframe install --no-deps --no-index /build/dist/foreframe-*.whl
COPY deploy/container/healthcheck.py /opt/foreframe/bin/healthcheck.py

FROM ${PYTHON_IMAGE} AS gpu-environment
COPY deploy/locks/gpu.txt /build/requirements.txt
RUN python -m venv --without-pip /opt/foreframe
RUN python -m pip --python /opt/foreframe install --require-hashes --only-binary :all: --requirement /build/requirements.txt
COPY --from=wheel /build/dist /build/dist
RUN python -m pip --python /opt/foreframe install --no-deps --no-index /build/dist/foreframe-*.whl
COPY deploy/container/healthcheck.py /opt/foreframe/bin/healthcheck.py

# A user of a fixed number, no installer, nothing that this user can write to.
FROM ${PYTHON_IMAGE} AS runtime
RUN python -m pip uninstall --yes --quiet pip setuptools wheel
RUN groupadd --gid 10001 foreframe && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin foreframe
RUN install --directory --owner=root --group=root --mode=0755 /models
ENV PATH=/opt/foreframe/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FOREFRAME_HTTP__HOST=0.0.0.0 \
    FOREFRAME_HTTP__PORT=8000 \
    FOREFRAME_HTTP__ADMIN_HOST=0.0.0.0 \
    FOREFRAME_HTTP__ADMIN_PORT=9000
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Liveness alone: an overloaded or a draining server is not restarted.
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 CMD ["/opt/foreframe/bin/python", "-I", "/opt/foreframe/bin/healthcheck.py"]
ENTRYPOINT ["/opt/foreframe/bin/foreframe"]
CMD ["serve", "--json"]

FROM runtime AS gpu
COPY --from=gpu-environment /opt/foreframe /opt/foreframe
# The libraries come as locked wheels; the driver alone is the machine's.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/opt/foreframe/lib/python3.11/site-packages/nvidia/cu13/lib:/opt/foreframe/lib/python3.11/site-packages/nvidia/cudnn/lib

FROM runtime AS cpu
COPY --from=cpu-environment /opt/foreframe /opt/foreframe
