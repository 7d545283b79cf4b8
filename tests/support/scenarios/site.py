"""A node with its public and private application on free loopback ports, within the test's own event loop.

    @on_both_loops
    async def test_something() -> None:
        async with running_site() as site:
            client = await site.client()             # a RawClient after its handshake
            ...

Rules:
- The broker is the loopback double: these tests are about the layers above it.
- At the end a site checks the test: nothing was reported to the loop's exception handler or logged as an error, and
  after all clients have disconnected nothing of them is left.
"""

import asyncio
import functools
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog
import uvloop

from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.config.hooks import Hooks as HookSettings
from snorky.gateway.config.limits import ClusterLimits
from snorky.gateway.config.settings import Limits, Private, Public
from snorky.gateway.connection.connection import Connection
from snorky.gateway.connection.native.direct_sender import DirectSender
from snorky.gateway.contracts.limits import LimitStore
from snorky.gateway.http.app import private_app, public_app
from snorky.gateway.http.outbound.hook_calls import http_hooks
from snorky.gateway.http.serving.listen import listen
from snorky.gateway.http.serving.site import Site
from snorky.gateway.http.websocket.credentials import Identify
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.metrics import Metrics
from snorky.gateway.node import Node
from snorky.gateway.sdk.registry import ServiceRegistry
from snorky.gateway.sdk.service import Service
from snorky.gateway.testing.broker import LoopbackBroker
from snorky.services.auth import AuthBackend, AuthService
from snorky.services.control import ControlBackend
from snorky.services.pubsub import PubSubBackend, PubSubService
from tests.support.clients.raw_ws import DEADLINE_S, RawClient
from tests.support.extension import extension_built, skip_without_ring

__all__ = ["Echo", "RunningSite", "gone", "on_both_loops", "on_both_paths", "running_site", "until"]

_TEST_TIMEOUT_S = 60.0
SETTINGS = {"send": "send", "python": "off"}  # of `native_fanout`, by path
_path: ContextVar[str] = ContextVar("path", default="")  # set by `on_both_paths`; "" = whichever is installed


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test twice: on uvloop, as in production, and on asyncio's own loop."""

    @functools.wraps(test)
    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], **others: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(_TEST_TIMEOUT_S):
                await test(**others)

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(bounded())

    own = inspect.Parameter("loop_factory", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = inspect.Signature([own, *inspect.signature(test).parameters.values()])  # type: ignore[attr-defined]
    loops = [pytest.param(uvloop.new_event_loop, id="uvloop"), pytest.param(asyncio.new_event_loop, id="asyncio")]
    return pytest.mark.parametrize("loop_factory", loops)(run)


def on_both_paths(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on both loops, each with the extension module, built for the tests, and without it."""

    @functools.wraps(test)
    async def on_path(path: str, **others: Any) -> None:
        if path == "io_uring":
            skip_without_ring()
        _path.set(path)
        with extension_built() if path != "python" else nullcontext():
            await test(**others)

    own = inspect.Parameter("path", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    on_path.__signature__ = inspect.Signature([own, *inspect.signature(test).parameters.values()])  # type: ignore[attr-defined]
    paths = [pytest.param(each, marks=pytest.mark.needs("gcc", "Python.h")) for each in ("io_uring", "send")]
    paths.append(pytest.param("python"))
    return pytest.mark.parametrize("path", paths)(on_both_loops(on_path))


async def until(is_true: Callable[[], Any], what: str = "", *, within_s: float = DEADLINE_S) -> None:
    """Run the loop until a condition in this process is true. Raises AssertionError: not in time."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    while not is_true():
        assert loop.time() < deadline_s, f"not within {within_s} s: {what or inspect.getsource(is_true).strip()}"
        await asyncio.sleep(0)


class Echo(Service):
    """Answers each message with itself; `hold` makes it wait for `release` first.

    keeps: record messages and their senders.
    """

    def __init__(self, name: str = "echo") -> None:
        super().__init__(name)
        self.seen: list[Any] = []
        self.opened: list[Connection] = []
        self.closed: list[Connection] = []
        self.release = asyncio.Event()
        self.keeps = True

    def on_connect(self, connection: Connection) -> None:
        if self.keeps:
            self.opened.append(connection)

    def on_disconnect(self, connection: Connection) -> None:
        if self.keeps:
            self.closed.append(connection)

    def on_message(self, connection: Connection, message: Any) -> Coroutine[Any, Any, None] | None:
        if self.keeps:
            self.seen.append(message)
        if message == "hold":
            return self._answer_later(connection, message)
        if message == "raise":
            raise RuntimeError("a service's own fault")
        self.send(connection, message)
        return None

    async def _answer_later(self, connection: Connection, message: Any) -> None:
        await self.release.wait()
        self.send(connection, message)


@dataclass(slots=True)
class RunningSite:
    """A running site. faults: calls of the loop's exception handler; errors: log records from ERROR on."""

    node: Node
    broker: LoopbackBroker
    handler: WebSocketHandler
    public: ServiceRegistry
    echo: Echo
    site: Site
    private_site: Site
    addresses: list[tuple[str, int]]
    private_address: tuple[str, int]
    faults: list[Mapping[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    clients: list[RawClient] = field(default_factory=list)

    async def open(self, *, receive_buffer_bytes: int | None = None, family: int = 0) -> RawClient:
        """Connect, without a handshake."""
        client = await RawClient.open(*self.addresses[family], receive_buffer_bytes=receive_buffer_bytes)
        self.clients.append(client)
        return client

    async def client(
        self,
        headers: Mapping[str, str | None] | None = None,
        *,
        early: bytes = b"",
        receive_buffer_bytes: int | None = None,
    ) -> RawClient:
        """Connect and shake hands."""
        client = await self.open(receive_buffer_bytes=receive_buffer_bytes)
        response = await client.handshake(headers, early=early)
        assert response.status == 101, response
        return client

    async def subscriber(self, channel: Any = "news", *, receive_buffer_bytes: int | None = None) -> RawClient:
        """Connect a client that has subscribed."""
        client = await self.client(receive_buffer_bytes=receive_buffer_bytes)
        reply = await client.call("subscribe", channel=channel)
        assert reply == {"type": "response", "data": None, "callId": 1}, reply
        return client

    def bring(self, payload: bytes, channel: str = "news") -> None:
        """Publish as another node would."""
        self.broker.bring((f"pubsub:{channel}", payload))

    @property
    def connection(self) -> Connection:
        """The newest connection."""
        return list(self.node.connections)[-1]

    @property
    def admitted(self) -> tuple[int, dict[str, int]]:
        """Connections that admission counts: in all, per address."""
        admission = self.handler._endpoint.admission
        return admission._total, dict(admission._per_ip)

    def sample(self, name: str, **labels: str) -> float:
        """Read a metric of the node."""
        return self.node.metrics.registry.get_sample_value(f"snorky_{name}", labels) or 0.0

    def assert_empty(self) -> None:
        """Nothing of any client is left."""
        wheel = self.handler._endpoint.wheel
        assert self.node.counts == {"connections": 0, "subscriptions": 0, "channels": 0}
        gate = self.handler._endpoint.gate
        assert self.admitted == (0, {})
        assert gate.websockets == 0 and not gate._per_network and not gate._networks, (
            "connections are counted that have ended"
        )
        assert not wheel._slots and not wheel._ending, "spokes left on the wheel"
        assert not self.public._inboxes, "an inbox without a client"
        sessions = self.node.auth._sessions
        assert not (sessions._by_connection or sessions._by_name or len(sessions._deadlines) or sessions._awaited), (
            "sessions left"
        )

    def assert_sound(self) -> None:
        """No unhandled error was reported."""
        assert not self.faults, self.faults
        assert not self.errors, self.errors


class _Errors(logging.Handler):
    def __init__(self, found: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.name} {record.levelname}: {record.getMessage()}"
        self._found.append(f"{text} {record.exc_info[1]!r}" if record.exc_info else text)


async def gone(site: RunningSite) -> None:
    """Close all clients and wait until the node has noticed."""
    for client in site.clients:
        client.close()
    networks = site.handler.endpoint.gate._networks  # of those in plain HTTP; they may still become WebSockets
    await until(
        lambda: not (networks or site.node.counts["connections"]), "the node notices that its clients have gone"
    )


@asynccontextmanager
async def running_site(
    *,
    limits: Limits | None = None,
    public: Public | None = None,
    private: Private | None = None,
    host: str = "127.0.0.1",
    is_strict: bool = True,
    auth: Callable[[Metrics], Authenticator] | None = None,
    identify: Identify | None = None,
    hooks: HookSettings | None = None,
    requires_identity: bool = False,
    cluster_limits: ClusterLimits | None = None,
    limit_store: LimitStore | None = None,
    channels: Iterable[dict[str, Any]] = (),
) -> AsyncIterator[RunningSite]:
    """Run one. is_strict: at the end, logged errors and leftovers fail the test. channels: rules of pub/sub.

    The others: of a node.
    """
    limits, public, private = limits or Limits(), public or Public(), private or Private()
    loop = asyncio.get_running_loop()
    broker = LoopbackBroker()
    metrics = Metrics()
    asked = http_hooks(hooks or HookSettings(), metrics, node_id="n0")
    node = Node(
        broker,
        limits=limits,
        metrics=metrics,
        auth=None if auth is None else auth(metrics),
        hooks=await asked.__aenter__(),
        cluster_limits=cluster_limits,
        limit_store=limit_store,
        direct_sender=DirectSender(SETTINGS.get(_path.get(), "auto")),
    )
    assert node.direct_sender.path == (_path.get() or node.direct_sender.path)
    echo = Echo()
    registry = ServiceRegistry(
        [PubSubService(channels=channels, unmatched="open"), AuthService(), echo], requires_identity=requires_identity
    )
    backend = ServiceRegistry([PubSubBackend(), AuthBackend(), ControlBackend(), Echo("echo_backend")])
    node.attach(registry)
    node.attach(backend)
    await node.start()
    handler = WebSocketHandler(registry, public, identify_hook=identify)
    site = Site(
        public_app(handler),
        header_timeout_s=limits.request_header_timeout_s,
        refusals=node.auth.refusals,
        websockets=handler,
    )
    sockets = listen(host, 0, send_buffer_bytes=limits.send_buffer_bytes)
    names = [("::1" if ":" in each.getsockname()[0] else "127.0.0.1", each.getsockname()[1]) for each in sockets]
    await site.start(sockets)
    private_site = Site(private_app(node, backend, private), refusals=node.auth.refusals, header_timeout_s=75.0)
    private_sockets = listen("127.0.0.1", 0)
    await private_site.start(private_sockets)
    running = RunningSite(
        node, broker, handler, registry, echo, site, private_site, names, private_sockets[0].getsockname()[:2]
    )
    loop.set_exception_handler(lambda _loop, context: running.faults.append(context))
    watch = _Errors(running.errors)
    logging.getLogger().addHandler(watch)
    try:
        with structlog.testing.capture_logs() as events:
            yield running
            await gone(running)
            if is_strict:
                await until(lambda: not registry._inboxes, "what they waited for is given up")
                running.errors += [str(each) for each in events if each["log_level"] in ("error", "critical")]
                running.assert_sound()
                running.assert_empty()
    finally:
        logging.getLogger().removeHandler(watch)
        for client in running.clients:
            client.close()
        await site.stop()
        await private_site.stop()
        for connection in node.connections:
            connection._wire.abort()  # type: ignore[attr-defined]  # a test failed: nothing lives on
        await node.stop()
        await asked.__aexit__(None, None, None)
        loop.set_exception_handler(None)
