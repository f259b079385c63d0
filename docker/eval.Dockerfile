# The environment of generate and grade. Built by `make images`.
ARG FLAVOUR=cuda

# One base a flavour, by tag and digest; only the chosen one is fetched. The wheels bring their own CUDA libraries: the
# base brings Python, the compiler that Triton needs, and nvcc for kernels that are compiled on first use.
FROM nvidia/cuda:13.0.0-devel-ubuntu24.04@sha256:1e8ac7a54c184a1af8ef2167f28fa98281892a835c981ebcddb1fad04bdd452d AS base-cuda
FROM python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b AS base-cpu

# A folder of wheels may take its place: --build-context wheels=FOLDER
FROM scratch AS wheels

# hadolint ignore=DL3006
FROM base-${FLAVOUR} AS python
RUN --mount=type=bind,source=docker/install-python.sh,target=/run/install.sh sh /run/install.sh

# First what changes seldom: every distribution by the hashes of its lock.
FROM python AS environment
ARG FLAVOUR
RUN --mount=type=bind,source=docker/install-environment.sh,target=/run/install.sh \
    --mount=type=bind,source=locks/bootstrap.txt,target=/locks/bootstrap.txt \
    --mount=type=bind,source=locks/eval-${FLAVOUR}.txt,target=/locks/eval-${FLAVOUR}.txt \
    --mount=type=bind,source=locks/math-verify-0.9.txt,target=/locks/math-verify-0.9.txt \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache \
    --mount=type=secret,id=certificates,required=false \
    sh /run/install.sh /locks/eval-${FLAVOUR}.txt

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
LABEL org.opencontainers.image.title="essence-eval" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.base.name="${BASE}" \
      essence.environment="eval" \
      essence.flavour="${FLAVOUR}" \
      essence.lock-sha256="${LOCK_SHA256}" \
      essence.source-sha256="${SOURCE_SHA256}"
# A number: when a stage is run, the caller's own takes its place.
USER 65532:65532
WORKDIR /tmp
CMD ["python", "-m", "essence.stages.self_test", "eval"]
