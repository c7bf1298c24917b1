# One image a service, out of one build:  docker build --target registry .   (registry, memory, router, cli)
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# The environment that is shipped has no pip: the image's own installs into it from outside.
RUN python -m venv --without-pip /opt/twofold
COPY constraints.txt pyproject.toml README.md ./
COPY clients/python clients/python
COPY services services
# No extras: the embedded servers and the tools for tests stay outside.
RUN pip --python /opt/twofold/bin/python install -c constraints.txt ./clients/python .

FROM python:${PYTHON}-slim AS runtime
# Nothing is written to the file system, which may be read-only; bytecode was compiled while building.
ENV PATH=/opt/twofold/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin twofold
COPY --from=build /opt/twofold /opt/twofold
# By number, so that Kubernetes' runAsNonRoot can see that it is not root.
USER 10001:10001
WORKDIR /srv

# The ports are those of the README. Containers have an address of their own, so each service listens on all of it;
# whoever runs one decides what is published (docker-compose.yml: the host's loopback only).
FROM runtime AS registry
ENV REGISTRY__HOST=0.0.0.0 REGISTRY__PORT=50051 REGISTRY__METRICS_PORT=9101
EXPOSE 50051 9101
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 CMD ["twofold", "health", "127.0.0.1:50051"]
ENTRYPOINT ["twofold-registry"]

FROM runtime AS memory
ENV MEMORY__HOST=0.0.0.0 MEMORY__PORT=50052 MEMORY__METRICS_PORT=9102
EXPOSE 50052 9102
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 CMD ["twofold", "health", "127.0.0.1:50052"]
ENTRYPOINT ["twofold-memory"]

FROM runtime AS router
ENV ROUTER__HOST=0.0.0.0 ROUTER__PORT=50053 ROUTER__METRICS_PORT=9103
EXPOSE 50053 9103
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 CMD ["twofold", "health", "127.0.0.1:50053"]
ENTRYPOINT ["twofold-router"]

# What a person or a job runs: twofold migrate, twofold health, …
FROM runtime AS cli
HEALTHCHECK NONE
ENTRYPOINT ["twofold"]
