"""SockJS on nodes within the test's own event loop: a shared broker and directory, real sockets, a manual clock.

async with sockjs_site(3) as site:
    client = site.client()                    # its requests go from node to node
    assert await client.post("xhr") == (200, "o\\n")
    site.clock.advance(5.0)                   # heartbeats and the ends of sessions are due by this clock
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from snorky.gateway.config.hooks import Hooks as HookSettings
from snorky.gateway.config.limits import ClusterLimits
from snorky.gateway.config.settings import Limits, Public
from snorky.gateway.contracts.limits import LocalLimitStore, SharedUnits
from snorky.gateway.http.app import public_app
from snorky.gateway.http.outbound.hook_calls import http_hooks
from snorky.gateway.http.serving.listen import listen
from snorky.gateway.http.serving.site import Site
from snorky.gateway.http.sockjs import SockJSHandler
from snorky.gateway.http.sockjs.session import Timing
from snorky.gateway.http.websocket.credentials import Identify
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.metrics import Metrics
from snorky.gateway.node import Node
from snorky.gateway.sdk.registry import ServiceRegistry
from snorky.gateway.testing.broker import Bus, BusBroker
from snorky.gateway.testing.directory import MemoryDirectory, SharedDirectory
from snorky.services.pubsub import PubSubService
from tests.support.scenarios.site import Echo, until

__all__ = ["QUICK", "HandClock", "SockJSCaller", "SockJSSite", "frames_of", "sockjs_site"]

QUICK = Timing(response_max_bytes=4096, beat_s=0.01)  # the usual times, but checked often
_DEADLINE_S = 30.0


class HandClock:
    """A clock that only a test advances."""

    def __init__(self) -> None:
        self._now_s = 1000.0

    def __call__(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Advance the clock; what is due is done at the next tick."""
        self._now_s += seconds


@dataclass
class _Host:
    """One node with its public application."""

    node: Node
    echo: Echo
    handler: WebSocketHandler
    sockjs: SockJSHandler
    site: Site
    url: str
    broker: BusBroker

    def sample(self, name: str, **labels: str) -> float:
        return self.node.metrics.registry.get_sample_value(f"snorky_{name}", labels) or 0.0


@dataclass
class SockJSSite:
    """A running site."""

    hosts: list[_Host]
    cluster: SharedDirectory
    http: aiohttp.ClientSession
    clock: HandClock
    errors: list[str] = field(default_factory=list)
    _count: "itertools.count[int]" = field(default_factory=itertools.count)

    def client(self, session_id: str | None = None, headers: Mapping[str, str] | None = None) -> "SockJSCaller":
        return SockJSCaller(self, session_id or f"session{next(self._count)}", dict(headers or {}))

    @property
    def connections(self) -> int:
        return sum(host.node.counts["connections"] for host in self.hosts)

    @property
    def closed(self) -> int:
        return sum(len(host.echo.closed) for host in self.hosts)

    @property
    def seen(self) -> list[Any]:
        return [value for host in self.hosts for value in host.echo.seen]

    def total(self, name: str, **labels: str) -> float:
        return sum(host.sample(name, **labels) for host in self.hosts)

    @property
    def is_empty(self) -> bool:
        """Nothing of any client is left."""
        for host in self.hosts:
            peers, sessions, server = host.sockjs._peers, host.sockjs._sessions, host.site._runner.server
            if server is None or server.connections:  # including sessions that end while their requests are answered
                return False
            if host.node.counts["connections"] or len(sessions) or host.handler.endpoint.admission._total:
                return False
            if (
                peers._forwarded
                or peers._session_owner._lent
                or peers._sends
                or peers._session_owner._tasks
                or sessions._wheel._slots
            ):
                return False
        return not any(self.cluster.names.values())

    def has_passed(self) -> bool:
        """As is_empty, and the clock advances meanwhile: silent clients time out."""
        self.clock.advance(QUICK.disconnect_delay_s)
        return self.is_empty


class SockJSCaller:
    """One session's requests, made by hand; each goes to the next node unless `at` names one."""

    def __init__(self, site: SockJSSite, session_id: str, headers: dict[str, str]) -> None:
        self._site = site
        self.session_id = session_id
        self._headers = headers
        self._turn = itertools.cycle(range(len(site.hosts)))

    def url(self, name: str, at: int | None = None) -> str:
        host = self._site.hosts[next(self._turn) if at is None else at]
        return f"{host.url}/sockjs/000/{self.session_id}/{name}"

    async def post(self, name: str, body: str | bytes = b"", *, at: int | None = None) -> tuple[int, str]:
        async with self._site.http.post(self.url(name, at), data=body, headers=self._headers) as response:
            return response.status, (await response.read()).decode()

    async def get(self, name: str, *, at: int | None = None) -> tuple[int, str]:
        async with self._site.http.get(self.url(name, at), headers=self._headers) as response:
            return response.status, (await response.read()).decode()

    @asynccontextmanager
    async def stream(
        self, name: str = "xhr_streaming", *, method: str = "POST", at: int | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Receive; the connection is cut at the end of the block."""
        response = await self._site.http.request(method, self.url(name, at), headers=self._headers)
        try:
            if name == "xhr_streaming":
                assert await response.content.readline() == b"h" * 2048 + b"\n"
            yield response
        finally:
            response.close()

    async def open(self) -> None:
        assert await self.post("xhr") == (200, "o\n")


async def frames_of(response: aiohttp.ClientResponse) -> list[str]:
    """Read the rest of a streaming response."""
    return (await response.content.read()).decode().splitlines()


class _Errors(logging.Handler):
    def __init__(self, found: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        self._found.append(f"{record.getMessage()} {record.exc_info[1]!r}" if record.exc_info else record.getMessage())


@asynccontextmanager
async def sockjs_site(
    nodes: int = 1,
    *,
    timing: Timing = QUICK,
    public: Public | None = None,
    limits: Limits | None = None,
    identify: Identify | None = None,
    hooks: HookSettings | None = None,
    cluster_limits: ClusterLimits | None = None,
) -> AsyncIterator[SockJSSite]:
    """Run nodes; at the end nothing may be left of their clients, and nothing may have been logged as an error.

    identify: returns the identity of a request. hooks: settings of HTTP hooks.
    """
    async with AsyncExitStack() as stack:
        bus, hosts, errors, clock = Bus(), list[_Host](), list[str](), HandClock()
        cluster, units = SharedDirectory(bus.publish), SharedUnits()
        for number in range(nodes):
            broker = BusBroker(bus)
            directory = MemoryDirectory(cluster, f"n{number}")
            metrics = Metrics()
            asked = await stack.enter_async_context(http_hooks(hooks or HookSettings(), metrics, node_id=f"n{number}"))
            node = Node(
                broker,
                directory,
                limits=limits or Limits(),
                metrics=metrics,
                node_id=f"n{number}",
                hooks=asked,
                cluster_limits=cluster_limits,
                limit_store=LocalLimitStore(units, f"n{number}"),
            )
            echo = Echo()
            registry = ServiceRegistry([PubSubService(), echo])
            node.attach(registry)
            await node.start()
            stack.push_async_callback(node.stop)
            handler = WebSocketHandler(registry, public, identify_hook=identify)
            sockjs = SockJSHandler(handler, timing=timing, clock=clock)
            site = Site(public_app(handler, sockjs), header_timeout_s=5.0, websockets=handler)
            sockets = listen("127.0.0.1", 0, send_buffer_bytes=16_384)
            await site.start(sockets)
            stack.push_async_callback(site.stop)
            hosts.append(_Host(node, echo, handler, sockjs, site, site.urls[0], broker))
        watch = _Errors(errors)
        logging.getLogger().addHandler(watch)
        stack.callback(logging.getLogger().removeHandler, watch)
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(str(context)))
        timeout = aiohttp.ClientTimeout(total=_DEADLINE_S)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout, connector=connector))
        running = SockJSSite(hosts, cluster, http, clock, errors)
        yield running
        await until(running.has_passed, "nothing of the clients is left")
        assert not errors, errors
        assert not any(units.by_node.values()), "units are counted for clients that have gone"
