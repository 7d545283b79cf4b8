"""The private port of a supervisor: combines what its workers report over Unix sockets.

/healthz  200 while the supervisor responds
/readyz   200 if every worker is ready; else 503, and the body says which is not
/metrics  summed over the workers
/backend  checked and read here, as on a single node; then forwarded to one living worker, which also checks whether
          the key may call the service
/api      likewise
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web
from prometheus_client import generate_latest

from snorky.gateway.config.settings import Private
from snorky.gateway.connection.refusals import Refusals
from snorky.gateway.errors import InvalidInput, SnorkyError
from snorky.gateway.http.app import BACKEND_MAX_BYTES
from snorky.gateway.http.backend.door import BackendDoor, error_response, refuse_pages
from snorky.gateway.http.protocols.centrifuge.api import key_in
from snorky.gateway.http.workers.metrics import Totals
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.codec import decode_json

__all__ = ["WorkerDoor", "workers_app"]

ASK_TIMEOUT_S: Final = 2.0
BACKEND_TIMEOUT_S: Final = 25.0  # the worker itself times out earlier
# not forwarded; the body is forwarded as it was read: decompressed, with its own length
_HOP_BY_HOP: Final = frozenset(
    "connection keep-alive transfer-encoding upgrade te trailer host expect content-length content-encoding".split()
)
# counted by the supervisor itself; workers count what is forwarded to them
_OWN_SERIES: Final = ("snorky_limit_hits_total", "snorky_refusals_total", "snorky_log_lines_dropped_total")


class WorkerDoor:
    """One worker's private Unix socket. name: unique for each process, also after a restart. path: the socket's."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(path)), timeout=aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
        )

    async def close(self) -> None:
        """Close the socket."""
        await self._session.close()

    async def reasons(self) -> list[str]:
        """Return why it is not ready; empty if it is."""
        try:
            async with self._session.get("http://localhost/readyz") as response:
                if response.status == 200:
                    return []
                answer = decode_json(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError, InvalidInput):
            return ["no answer"]
        reasons = answer.get("reasons") if isinstance(answer, dict) else None
        return [str(each) for each in reasons] if isinstance(reasons, list) else ["unready"]

    async def metrics(self) -> str | None:
        """Return its metrics; None if it does not respond."""
        try:
            async with self._session.get("http://localhost/metrics") as response:
                return await response.text() if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def forward(self, request: web.Request, body: bytes) -> web.Response:
        """Forward a request. Raises ClientConnectorError: it did not arrive, so the caller may try another worker."""
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP]
        timeout = aiohttp.ClientTimeout(total=BACKEND_TIMEOUT_S)
        async with self._session.post(
            f"http://localhost{request.path_qs}", data=body, headers=headers, timeout=timeout
        ) as response:
            return web.Response(
                status=response.status, body=await response.read(), headers={"Content-Type": response.content_type}
            )


def workers_app(
    doors: Callable[[], Sequence[WorkerDoor]],
    wanted: int,
    totals: Totals,
    private: Private,
    on_ready: Callable[[], None] = lambda: None,
) -> web.Application:
    """Make the application. doors: of the running workers; wanted: how many should run. on_ready: before a 200."""
    turn = 0
    own = Metrics()
    refusals = Refusals(own)
    door_of_backend = BackendDoor(private, metrics=lambda: own, refusals=lambda: refusals)

    async def healthz(_request: web.Request) -> web.Response:
        return web.json_response({"status": "alive", "workers": len(doors())})

    async def readyz(_request: web.Request) -> web.Response:
        present = list(doors())
        answers = await asyncio.gather(*(door.reasons() for door in present))
        reasons = {door.name: answer for door, answer in zip(present, answers, strict=True) if answer}
        missing = ["workers are starting"] * (len(present) < wanted)
        body = {"status": "unready" if reasons or missing else "ready", "reasons": missing, "workers": reasons}
        if reasons or missing:
            return web.json_response(body, status=503)
        on_ready()
        return web.json_response(body)

    async def metrics(_request: web.Request) -> web.Response:
        present = list(doors())
        totals.take("supervisor", generate_latest(own.registry.restricted_registry(_OWN_SERIES)).decode())
        for door, text in zip(present, await asyncio.gather(*(door.metrics() for door in present)), strict=True):
            if text is not None and door in doors():  # else the worker ended meanwhile, and its counters are kept
                totals.take(door.name, text)
        return web.Response(body=totals.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def backend(request: web.Request) -> web.Response:
        async def hand_on(body: bytes, _key_name: str) -> web.Response:
            return await forward(request, body)

        key = key_in(request) if request.path.startswith("/api/") else None
        return await door_of_backend.admit(request, hand_on, key=key)

    async def forward(request: web.Request, body: bytes) -> web.Response:
        nonlocal turn
        turn += 1
        present = list(doors())
        for offset in range(len(present)):
            door = present[(turn + offset) % len(present)]
            try:
                return await door.forward(request, body)
            except aiohttp.ClientConnectorError:
                continue
            except (aiohttp.ClientError, TimeoutError, OSError):
                # it may have been executed, so no other worker is tried
                return error_response(504, SnorkyError("The worker did not answer"), "no_reply")
        response = error_response(503, SnorkyError("No worker is running"), "unavailable")
        response.headers["Retry-After"] = "1"
        return response

    app = web.Application(client_max_size=BACKEND_MAX_BYTES, middlewares=[refuse_pages(private, refusals)])
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
            web.post("/backend", backend),
            web.post("/api/{method}", backend),
        ]
    )
    return app
