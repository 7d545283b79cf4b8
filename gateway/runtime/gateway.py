"""Gateway: one complete node, built from settings; started in order and stopped in reverse order.

    async with Gateway(load(None, os.environ)) as gateway:
        await gateway.until_ready()
        ...
        await gateway.drain()

`snorky.gateway.runtime.process` runs one until a signal arrives.
"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from snorky.gateway.config.settings import Settings
from snorky.gateway.contracts.broker import Broker
from snorky.gateway.errors import CloseCode, ConfigurationError
from snorky.gateway.http.app import private_app, public_app
from snorky.gateway.http.serving.listen import listen, url_of
from snorky.gateway.http.serving.site import Site
from snorky.gateway.http.websocket.drain import drain
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.node import Node
from snorky.gateway.runtime.node import running_node
from snorky.gateway.sdk.info import InfoService
from snorky.gateway.sdk.key_services import problems_of_keys
from snorky.gateway.sdk.loading import load_function, load_registries
from snorky.gateway.sdk.registry import ServiceRegistry

__all__ = ["Gateway"]

_PRIVATE_HEADER_TIMEOUT_S = 75.0  # scrapers and backends keep their connections


class Gateway:
    """One node with its public and private port.

    public, private: custom registries instead of the settings' services. broker: used instead of Redis.
    reuse_port: share the public port with other nodes on this machine. private_path: a Unix socket instead of
    the private port. with_demo: serve the demo page.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        public: ServiceRegistry | None = None,
        private: ServiceRegistry | None = None,
        broker: Broker | None = None,
        with_demo: bool = False,
        reuse_port: bool = False,
        private_path: Path | None = None,
    ) -> None:
        self._settings = settings
        if public is None or private is None:
            loaded = load_registries(settings)
        self._public = loaded[0] if public is None else public
        self._private = loaded[1] if private is None else private
        if problems := problems_of_keys(settings.private, self._private):
            raise ConfigurationError("\n".join(problems))
        if "gateway" not in self._public:
            self._public.register(InfoService())
        auth = settings.auth
        self._public.requires_identity |= auth.required
        self._identify_hook = load_function("[auth] identify_hook", auth.identify_hook) if auth.identify_hook else None
        self._broker = broker
        self.has_demo = with_demo
        self._reuse_port = reuse_port
        self._private_path = private_path
        self._stack = AsyncExitStack()
        self._node: Node | None = None
        self.public_urls: list[str] = []
        self.private_urls: list[str] = []

    @property
    def node(self) -> Node:
        """The node. Raises ConfigurationError: the gateway is not started."""
        if self._node is None:
            raise ConfigurationError("the gateway is not started: use `async with`")
        return self._node

    async def __aenter__(self) -> Self:
        """Start: embedded server, node, ports. Raises ConfigurationError: a setting does not work."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything, in reverse order."""
        await self._stack.aclose()

    @property
    def public(self) -> ServiceRegistry:
        """The services for clients."""
        return self._public

    async def until_ready(self, timeout_s: float | None = None) -> None:
        """Wait until the node receives from its broker. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not self.node.is_ready:  # noqa: ASYNC110 - only once, during startup
                await asyncio.sleep(0.01)

    async def drain(self, *, grace_max_s: float | None = None) -> None:
        """Disconnect all clients, spread over the settings' grace period, or over grace_max_s if that is shorter."""
        grace_s = self._settings.public.drain_grace_s
        await drain(self.node, grace_s if grace_max_s is None else min(grace_s, grace_max_s))

    async def _start(self) -> None:
        settings, stack = self._settings, self._stack
        public_sockets = listen(
            settings.public.host,
            settings.public.port,
            reuse_port=self._reuse_port,
            send_buffer_bytes=settings.limits.send_buffer_bytes,
        )
        for each in public_sockets:
            stack.callback(each.close)
        node = self._node = await stack.enter_async_context(
            running_node(
                self._public,
                self._private,
                settings=settings,
                broker=self._broker,
                public_url=url_of(public_sockets[0]),
            )
        )
        # the private port first, so that health checks work before the first client connects
        self.private_urls = await self._serve_private(node)
        stack.callback(self._cut_connections)
        handler = WebSocketHandler(self._public, settings.public, identify_hook=self._identify_hook)
        app = public_app(handler, with_demo=self.has_demo)
        site = Site(
            app,
            header_timeout_s=settings.limits.request_header_timeout_s,
            refusals=node.auth.refusals,
            websockets=handler,
        )
        stack.push_async_callback(site.stop)
        await site.start(public_sockets)
        self.public_urls = site.urls

    async def _serve_private(self, node: Node) -> list[str]:
        app = private_app(node, self._private, self._settings.private)
        site = Site(app, header_timeout_s=_PRIVATE_HEADER_TIMEOUT_S, refusals=node.auth.refusals)
        self._stack.push_async_callback(site.stop)
        if self._private_path is not None:
            await site.start_unix(self._private_path)
            return [f"unix://{self._private_path}"]
        await site.start(listen(self._settings.private.host, self._settings.private.port))
        return site.urls

    def _cut_connections(self) -> None:
        """Close connections that remain after the drain."""
        for connection in self.node.connections:
            connection.close(CloseCode.GOING_AWAY, "Going away")
