# The service in one image: built with everything pip needs, run with nothing but Python and the
# installed packages.
FROM python:3.11-slim-bookworm AS build

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# binutils: for `strip`.
RUN apt-get update && apt-get install --yes --no-install-recommends binutils
# Without pip, which installs from outside: nothing is installed where the service runs.
RUN python -m venv --without-pip /opt/venv
ENV PIP_PYTHON=/opt/venv/bin/python
WORKDIR /src

# Which build of torch. Empty takes the one of pip's own index: it runs on a CPU and, on x86-64
# Linux, carries CUDA as well, several GB. The address of the PyTorch project's CPU index makes an
# image of under 2 GB, one of its CUDA indexes an image for that CUDA version:
#   docker compose build --build-arg TORCH_INDEX_URL=<address> service
# The version is pinned; at one version pip prefers a build with a local label (+cpu, +cu126) to one
# without, so an extra index is enough.
ARG TORCH_INDEX_URL=
COPY constraints.txt ./
RUN pip install --no-compile ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} --constraint constraints.txt torch

# Dependencies before the code, so that a change of the code rebuilds in seconds: without packages,
# the project installs as its dependencies alone.
# Extras, with commas between them: `predict` for screening (deploy/kubernetes/screening).
ARG EXTRAS=
COPY pyproject.toml README.md ./
RUN pip install --no-compile --constraint constraints.txt ".${EXTRAS:+[$EXTRAS]}" && pip uninstall --yes g-merging

COPY models models
COPY merging merging
COPY service service
COPY gmerging gmerging
RUN pip install --no-compile --no-deps .
COPY deploy/slim.py /slim.py
RUN python /slim.py /opt/venv/lib/python3.11/site-packages
# A start in advance, for every released model: it writes the bytecode of what is imported, and what
# numba compiles, so that a container need not (but on a processor of another kind). Not in /src,
# where the packages would be the sources.
COPY deploy/warm_up.py /warm_up.py
RUN cd / && NUMBA_CACHE_DIR=/opt/numba /opt/venv/bin/python /warm_up.py


FROM python:3.11-slim-bookworm

# What RDKit draws with (`POST /depict`), and its wheel does not bring.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libxrender1 libxext6 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/numba /opt/numba
# For jobs, where GMERGING_JOBS says so. A new volume takes its owner from the folder that it is
# mounted on.
RUN install --directory --owner=10001 --group=10001 /var/lib/gmerging
# Listening on all addresses is right inside a container: who can reach the port is decided where it
# is published. NUMBA_CACHE_DIR must be writable for numba to use it at all, which /opt/numba is
# not: its contents are copied at the start. HOME, because the user below has no entry in
# /etc/passwd and torch asks for a place to cache in.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    NUMBA_CACHE_DIR=/tmp/numba \
    GMERGING_HOST=0.0.0.0 \
    GMERGING_PORT=8000
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000

# http.client rather than urllib: it knows no proxy settings.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['GMERGING_PORT']), timeout=4); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]

CMD ["sh", "-c", "cp -r /opt/numba /tmp/ && exec gmerging serve"]
