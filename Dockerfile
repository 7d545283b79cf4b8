# syntax=docker/dockerfile:1
# One gateway node. The image holds Python, the gateway's wheel and its dependencies; nothing that builds, no
# state. It runs as a numeric user on a read-only root and writes at most to /tmp.

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY . .
# The wheel first, then that wheel: the image holds what a user of the package gets, no more. All else comes from the
# locks that scripts/lock-image writes: pip installs only files whose hashes are there. The running node installs
# nothing, so pip goes.
RUN python -m pip install --no-cache-dir --only-binary=:all: --require-hashes -r deploy/build-requirements.txt \
    && python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheel . \
    && python -m venv /opt/snorky \
    && /opt/snorky/bin/python -m pip install --no-cache-dir --only-binary=:all: --require-hashes -r deploy/requirements.txt \
    && /opt/snorky/bin/python -m pip install --no-cache-dir --no-index --no-deps /wheel/*.whl \
    && /opt/snorky/bin/python -m pip check \
    && /opt/snorky/bin/python -m pip uninstall --yes pip setuptools

FROM python:3.11-slim-bookworm
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="snorky-gateway" \
      org.opencontainers.image.description="A real-time WebSocket gateway node, fan-out through Redis" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# Same path as in the build stage: a virtual environment does not move.
COPY --from=build /opt/snorky /opt/snorky

# Inside a container loopback reaches nobody: both ports listen on all addresses, IPv4 and IPv6. What may reach them
# is the engine's to say: publish 8002 through a load balancer, keep 8003 (backend, health, metrics) inside.
# hadolint ignore=DL3064  # PRIVATE names a port here, no secret
ENV PATH="/opt/snorky/bin:${PATH}" \
    PYTHONUNBUFFERED="1" \
    PYTHONDONTWRITEBYTECODE="1" \
    HOME="/tmp" \
    SNORKY_PUBLIC__HOST="" \
    SNORKY_PUBLIC__PORT="8002" \
    SNORKY_PRIVATE__HOST="" \
    SNORKY_PRIVATE__PORT="8003"

WORKDIR /tmp
# Numeric, so that an orchestrator can tell that it is not root without reading /etc/passwd (runAsNonRoot).
USER 10001:10001
EXPOSE 8002 8003
STOPSIGNAL SIGTERM

# Liveness, not readiness: a node that waits for Redis or drains is well, and restarting it would only cost clients.
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
    CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['SNORKY_PRIVATE__PORT']), timeout=2); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]

ENTRYPOINT ["snorky"]
# Secure by default: without authentication this refuses to start on all addresses and says what to do.
# Whoever wants an open gateway says so: `docker run ... serve --insecure`.
CMD ["serve"]
