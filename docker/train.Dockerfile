# The environment of tokenize, train, and of the models that the kit makes itself. Built by `make images`.
ARG FLAVOUR=cuda

# One base a flavour, by tag and digest; only the chosen one is fetched. The wheels bring their own CUDA libraries: the
# base brings Python, the compiler that Triton needs, and the libraries of forward compatibility for older drivers. No nvcc:
# Triton has an assembler of its own, and nothing of DeepSpeed's is compiled.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04@sha256:f8ef28f579ea42a44b415d2c5d46f788e6a9b395c6c83f2929416e1fc192c143 AS base-cuda
FROM python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b AS base-cpu

# A folder of wheels may take its place: --build-context wheels=FOLDER
FROM scratch AS wheels

# hadolint ignore=DL3006
FROM base-${FLAVOUR} AS python
# NCCL looks for libibverbs, and that for the provider of a network card: without them, ranks on several machines use TCP.
RUN --mount=type=bind,source=docker/install-python.sh,target=/run/install.sh \
    sh /run/install.sh libibverbs1 ibverbs-providers

# First what changes seldom: every distribution by the hashes of its lock.
FROM python AS environment
ARG FLAVOUR
RUN --mount=type=bind,source=docker/install-environment.sh,target=/run/install.sh \
    --mount=type=bind,source=locks/bootstrap.txt,target=/locks/bootstrap.txt \
    --mount=type=bind,source=locks/train-${FLAVOUR}.txt,target=/locks/train-${FLAVOUR}.txt \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache \
    --mount=type=secret,id=certificates,required=false \
    sh /run/install.sh /locks/train-${FLAVOUR}.txt

# Then what changes often: the kit itself.
FROM environment AS source
RUN --mount=type=bind,source=docker/install-source.sh,target=/run/install.sh \
    --mount=type=bind,source=essence,target=/run/essence \
    sh /run/install.sh

FROM python
COPY --from=environment /opt/essence /opt/essence
COPY --from=source /opt/essence-source /opt/essence-source
ENV PATH=/opt/essence/bin:$PATH \
    PYTHONPATH=/opt/essence-source \
    PYTHONNOUSERSITE=1 \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1
ARG FLAVOUR
ARG COMMIT=unknown
ARG LOCK_SHA256=unknown
ARG BASE=unknown
ARG SOURCE_SHA256=unknown
LABEL org.opencontainers.image.title="essence-train" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.base.name="${BASE}" \
      essence.environment="train" \
      essence.flavour="${FLAVOUR}" \
      essence.lock-sha256="${LOCK_SHA256}" \
      essence.source-sha256="${SOURCE_SHA256}"
# A number: when a stage is run, the caller's own takes its place.
USER 65532:65532
WORKDIR /tmp
CMD ["python", "-m", "essence.stages.self_test", "train"]
