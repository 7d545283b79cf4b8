"""HookBackend: a backend on loopback that answers the questions of HTTP hooks, well or badly.

async with HookBackend() as backend:
    backend.answer = {"allow": False}          # JSON, or bytes, or a function of the request
    backend.status = 200
    ... backend.url, backend.questions, backend.most_at_once
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self

from aiohttp import web

__all__ = ["HookBackend"]

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HookBackend:
    """Records every request. most_at_once: the largest number of requests that it worked at together."""

    def __init__(self, answer: Any = None) -> None:
        self.answer: Any = {"allow": True} if answer is None else answer  # a mapping, or bytes
        self.status = 200
        self.headers: Mapping[str, str] = {}
        self.respond: Respond | None = None  # instead of `answer`
        self.may_answer = asyncio.Event()  # cleared: every request waits for it
        self.may_answer.set()
        self.questions: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.requests: list[web.Request] = []
        self.at_once = self.most_at_once = 0
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/hook"

    async def start(self) -> None:
        """Listen; again on the same port after `stop`."""
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=1024, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening and close all connections; connecting is refused from now on."""
        runner, self._runner = self._runner, None
        if runner is not None:
            self.may_answer.set()
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append(request)
        self.bodies.append(body)
        self.questions.append(json.loads(body))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.may_answer.wait()
            if self.respond is not None:
                return await self.respond(request)
            answer = self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode()
            return web.Response(status=self.status, body=answer, headers=dict(self.headers))
        finally:
            self.at_once -= 1
