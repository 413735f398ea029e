# syntax=docker/dockerfile:1
# One file, base images as arguments.
#   docker build --target cpu -t pipeline:cpu .
#   docker run --rm -p 127.0.0.1:8000:8000 -v $PWD/artifacts:/app/artifacts pipeline:cpu stage=serve serve.host=0.0.0.0
#   docker build --target train --build-arg TRAIN_IMAGE=nvcr.io/nvidia/nemo:25.11 -t pipeline:train .
ARG BASE_IMAGE=python:3.12-slim-bookworm
ARG TRAIN_IMAGE=nvcr.io/nvidia/nemo:25.11

FROM ${BASE_IMAGE} AS cpu
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ git make && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY requirements*.lock Makefile ./
COPY tools/setup.sh tools/
RUN make setup TORCH=cpu && useradd --create-home pipeline && chown pipeline /app
COPY --chown=pipeline . .
USER pipeline
ENV PATH=/app/.venv/bin:$PATH
ENTRYPOINT ["python", "-m", "pipeline"]
CMD ["stage=doctor"]

# NVIDIA's image has NeMo, Megatron-Core, ModelOpt and Transformer Engine; only the light packages are added.
FROM ${TRAIN_IMAGE} AS train
WORKDIR /app
RUN pip install --no-cache-dir hydra-core==1.3.2 dvc==3.67.1 mlflow==3.2.0 rapidfuzz prometheus-client
COPY . .
ENTRYPOINT ["python", "-m", "pipeline"]
CMD ["stage=doctor"]
