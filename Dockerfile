# The pipeline and its server in containers: docs/containers.md.
#   docker build --target cpu -t pipeline:cpu .
# NVIDIA's images need an account and have no default. Give those that you can pull:
#   docker build --target train --build-arg TRAIN_IMAGE=<NVIDIA's NeMo image>:25.11 -t pipeline:train .
# hadolint global ignore=DL3008
# (Debian's mirrors keep only the newest version of a package, so packages are not pinned.)
# Python 3.11, because the lock has torch's CPU wheel for that version.
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG TRAIN_IMAGE=set-the-build-argument-train-image
ARG VLLM_IMAGE=vllm/vllm-openai:v0.24.0
ARG TRTLLM_IMAGE=set-the-build-argument-trtllm-image

# The locked environment, in its own build stage, so that compilers stay out of the image.
FROM ${BASE_IMAGE} AS environment
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ git make python3-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/pipeline
COPY requirements*.lock Makefile ./
COPY extras extras/
COPY tools/setup.sh tools/setup_extra.sh tools/
# torch's CPU wheel comes from an extra index, or from a folder.
ARG TORCH=cpu
# Extras to install, as in EXTRA="gcs".
ARG EXTRA=
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
RUN make setup
# Remove the packages that only tests and developers need.
COPY pyproject.toml ./
RUN python3 -c "import tomllib; print(*sum(tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups'].values(), []), sep='\n')" > dev.txt \
    && .venv/bin/uv pip uninstall --python .venv/bin/python -r dev.txt

FROM ${BASE_IMAGE} AS cpu
# DVC needs git.
RUN apt-get update \
    && apt-get install -y --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*
COPY --from=environment /opt/pipeline/.venv /opt/pipeline/.venv
WORKDIR /app
COPY . .
# A named volume gets the owner of the folder that it is mounted on. Python files are compiled here,
# because a read-only container would compile them at every start.
RUN install -d -o 1000 -g 1000 /opt/nim/.cache /model /app/artifacts /var/lib/mlflow \
    && python3 -m compileall -q pipeline deploy
ENV PATH=/opt/pipeline/.venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp USER=pipeline HF_HUB_OFFLINE=1
# Last, so that a new revision rebuilds no layer.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pipeline" \
      org.opencontainers.image.description="The pipeline from conversations to a served model; runs its OpenAI server by default" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 1000:1000
VOLUME ["/model", "/opt/nim/.cache"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python3", "deploy/healthcheck.py"]
ENTRYPOINT ["python3", "-m", "deploy.entrypoint"]

# Only the server, for CPU engines of stage=build, without the training stack.
FROM ${BASE_IMAGE} AS serve-cpu
WORKDIR /app
COPY requirements.lock ./
COPY tools tools
RUN python3 -m venv /opt/pipeline/.venv && /opt/pipeline/.venv/bin/python -m tools.complete server-cpu
COPY . .
RUN install -d -o 1000 -g 1000 /opt/nim/.cache /model && python3 -m compileall -q pipeline deploy
ENV PATH=/opt/pipeline/.venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp USER=pipeline HF_HUB_OFFLINE=1
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pipeline-serve-cpu" \
      org.opencontainers.image.description="The pipeline's OpenAI server on ONNX Runtime" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 1000:1000
VOLUME ["/model", "/opt/nim/.cache"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python3", "deploy/healthcheck.py"]
ENTRYPOINT ["python3", "-m", "deploy.entrypoint"]

# NVIDIA's images have NVIDIA's builds of NeMo, vLLM or TensorRT-LLM. Only the packages that our code
# needs beyond these are added, from the hashed lock.
FROM ${TRAIN_IMAGE} AS train
USER 0
WORKDIR /app
COPY . .
RUN python3 -m tools.complete chain \
    && install -d -o 1000 -g 1000 /opt/nim/.cache /model /app/artifacts \
    && python3 -m compileall -q pipeline deploy
ENV PYTHONUNBUFFERED=1 HOME=/tmp USER=pipeline HF_HUB_OFFLINE=1
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pipeline-train" \
      org.opencontainers.image.description="The pipeline's stages on NVIDIA's NeMo image" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 1000:1000
VOLUME ["/model", "/opt/nim/.cache"]
ENTRYPOINT ["python3", "-m", "deploy.entrypoint"]
CMD ["stage=doctor"]

FROM ${VLLM_IMAGE} AS serve-vllm
USER 0
WORKDIR /app
COPY . .
RUN python3 -m tools.complete server \
    && install -d -o 1000 -g 1000 /opt/nim/.cache /model \
    && python3 -m compileall -q pipeline deploy
ENV PYTHONUNBUFFERED=1 HOME=/tmp USER=pipeline HF_HUB_OFFLINE=1 \
    VLLM_NO_USAGE_STATS=1 NIM_MODEL_PROFILE=vllm
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pipeline-serve-vllm" \
      org.opencontainers.image.description="The pipeline's OpenAI server on vLLM" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 1000:1000
VOLUME ["/model", "/opt/nim/.cache"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python3", "deploy/healthcheck.py"]
ENTRYPOINT ["python3", "-m", "deploy.entrypoint"]

FROM ${TRTLLM_IMAGE} AS serve-trtllm
USER 0
WORKDIR /app
COPY . .
RUN python3 -m tools.complete server \
    && install -d -o 1000 -g 1000 /opt/nim/.cache /model \
    && python3 -m compileall -q pipeline deploy
ENV PYTHONUNBUFFERED=1 HOME=/tmp USER=pipeline HF_HUB_OFFLINE=1 \
    NIM_MODEL_PROFILE=tensorrt_llm
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pipeline-serve-trtllm" \
      org.opencontainers.image.description="The pipeline's OpenAI server on TensorRT-LLM" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 1000:1000
VOLUME ["/model", "/opt/nim/.cache"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python3", "deploy/healthcheck.py"]
ENTRYPOINT ["python3", "-m", "deploy.entrypoint"]
