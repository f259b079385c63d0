# The environment of downloads, the only one that ever has network; the same image
# for every flavour. Built by `make images`.

# By tag and digest. No compiler, and in the end no pip.
FROM python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b AS python

# A folder of wheels may take its place: --build-context wheels=FOLDER
FROM scratch AS wheels

# First what changes seldom: every distribution by the hashes of its lock.
FROM python AS environment
RUN --mount=type=bind,source=docker/install-environment.sh,target=/run/install.sh \
    --mount=type=bind,source=locks/bootstrap.txt,target=/locks/bootstrap.txt \
    --mount=type=bind,source=locks/download-cpu.txt,target=/locks/download-cpu.txt \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache \
    --mount=type=secret,id=certificates,required=false \
    sh /run/install.sh /locks/download-cpu.txt

# Then what changes often: the kit itself.
FROM environment AS source
RUN --mount=type=bind,source=docker/install-source.sh,target=/run/install.sh \
    --mount=type=bind,source=essence,target=/run/essence \
    sh /run/install.sh

FROM python
# Nothing that installs packages where there is network.
RUN rm -rf /usr/local/lib/python3.*/site-packages/* /usr/local/lib/python3.*/ensurepip /usr/local/bin/pip*
COPY --from=environment /opt/essence /opt/essence
COPY --from=source /opt/essence-source /opt/essence-source
ENV PATH=/opt/essence/bin:$PATH \
    PYTHONPATH=/opt/essence-source \
    PYTHONNOUSERSITE=1 \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1
ARG COMMIT=unknown
ARG LOCK_SHA256=unknown
ARG BASE=unknown
ARG SOURCE_SHA256=unknown
LABEL org.opencontainers.image.title="essence-download" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.base.name="${BASE}" \
      essence.environment="download" \
      essence.flavour="cpu" \
      essence.lock-sha256="${LOCK_SHA256}" \
      essence.source-sha256="${SOURCE_SHA256}"
# A number: when a stage is run, the caller's own takes its place.
USER 65532:65532
WORKDIR /tmp
CMD ["python", "-m", "essence.stages.self_test", "download"]
