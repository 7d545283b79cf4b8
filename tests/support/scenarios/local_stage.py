"""A stage of nodes in this process, where scenarios of tests.support.scenarios.conformance run: no network, no Redis.

async with local_stage(3, "open", ["json", "msgpack"]) as stage:
    await perform(stage, scenario)
"""

import io
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import msgpack  # type: ignore[import-untyped]  # ships no annotations

from snorky.gateway import ServiceRegistry
from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.auth.tokens import FixedKey, Key, Verifier
from snorky.gateway.config.auth import Auth
from snorky.gateway.config.settings import ApiKey, Private
from snorky.gateway.contracts.revocations import LocalRevocations, Watcher
from snorky.gateway.http.app import private_app
from snorky.gateway.http.serving.listen import listen
from snorky.gateway.http.serving.site import Site
from snorky.gateway.metrics import Metrics
from snorky.gateway.sdk.info import InfoService
from snorky.services.auth import AuthBackend, AuthService
from snorky.services.chat import ChatService
from snorky.services.control import ControlBackend
from snorky.services.cursors import CursorsService
from snorky.services.datasync import DataSyncBackend, DataSyncService
from snorky.services.messaging import MessagingService
from snorky.services.pubsub import PubSubBackend, PubSubService
from tests.support.fakes.fake_wire import JSON, MSGPACK, Client, until
from tests.support.fakes.memory_cluster import Resident, Town, town
from tests.support.scenarios.conformance import Garbled
from tests.support.scenarios.guarded import Broken, GuardedChat, GuardedCursors, GuardedMessaging, GuardedPubSub
from tests.support.scenarios.history_table import RULES
from tests.support.scenarios.table import DEALERS
from tests.support.scenarios.tokens import SECRET, hmac_token

__all__ = ["API_KEY", "LocalStage", "local_stage"]

API_KEY = "the key of the backend, and of no one else"
DEADLINE_S = 0.5  # where clients must authenticate


class _Common(LocalRevocations):
    """One list for all nodes."""

    def __init__(self) -> None:
        super().__init__()
        self._watchers: dict[Watcher, None] = {}
        self._watcher = self._tell

    async def begin(self, watcher: Watcher) -> None:
        self._watchers[watcher] = None

    def _tell(self, revocation: Any) -> None:
        for watcher in self._watchers:
            watcher(revocation)


class LocalActor:
    """A client without a network. inbox: decoded on access."""

    def __init__(self, client: Client) -> None:
        self.encoding = client.connection.dialect.encoding.value
        self._client = client
        self._inbox: list[Any] = []
        self._read = 0

    @property
    def inbox(self) -> list[Any]:
        writes = self._client.wire.writes[self._read :]
        self._read += len(writes)
        if self.encoding == "json":
            self._inbox += [json.loads(line) for line in b"".join(writes).splitlines()]
        else:
            unpacker = msgpack.Unpacker()
            unpacker.feed(b"".join(writes))
            self._inbox += unpacker
        return self._inbox

    @property
    def close_code(self) -> int | None:
        return self._client.wire.closes[0][0] if self._client.wire.closes else None

    async def send(self, envelope: Any) -> None:
        if isinstance(envelope, Garbled):
            data = envelope.text.encode() if self.encoding == "json" else envelope.packed
        else:
            data = json.dumps(envelope).encode() if self.encoding == "json" else msgpack.packb(envelope)
        self._client.send_bytes(data)

    async def until(self, claim: Callable[[], object]) -> None:
        await until(claim)

    async def close(self) -> None:
        self._client.leave()

    async def dismiss(self) -> None:
        self._client.leave()


class LocalStage:
    """Nodes in this process. encodings: of the clients, in turn."""

    def __init__(self, nodes: Town, encodings: Sequence[str], private: Private, stack: AsyncExitStack) -> None:
        self._nodes = nodes
        self._encodings = encodings
        self._settings = private
        self._stack = stack
        self._session: aiohttp.ClientSession | None = None
        self._urls: list[str] = []
        self._private = [
            ServiceRegistry([PubSubBackend(), DataSyncBackend(), AuthBackend(), ControlBackend()]) for _ in nodes.nodes
        ]
        for node, registry in zip(nodes.nodes, self._private, strict=True):
            node.attach(registry)

    async def client(self, number: int, identity: str | None) -> LocalActor:
        at = number % len(self._nodes.nodes)
        dialect = JSON if self._encodings[number % len(self._encodings)] == "json" else MSGPACK
        actor = LocalActor(Client(self._nodes.nodes[at], self._nodes.registries[at], dialect))
        if identity is not None:
            request = {"command": "authenticate", "params": {"token": hmac_token(identity)}, "callId": "who"}
            await actor.send({"service": "auth", "message": request})
            await actor.until(lambda: actor.inbox)
            assert actor.inbox[0]["message"]["data"]["identity"] == identity, actor.inbox
        return actor

    async def backend(self, number: int, envelope: Any) -> Any:
        at = number % len(self._private)
        passing = Resident(self._nodes.nodes[at], self._private[at], None)
        passing.send(envelope["service"], envelope["message"])
        await until(lambda: passing.envelopes)
        passing.leave()
        return passing.envelopes[0]

    async def post(self, number: int, body: bytes, headers: Mapping[str, str] | None) -> tuple[int, Any]:
        if self._session is None:
            self._session = await self._open_doors()
        url = self._urls[number % len(self._urls)]
        sent = {"X-Backend-Key": API_KEY} if headers is None else headers
        async with self._session.post(url, data=io.BytesIO(body), headers=sent) as response:
            return response.status, await response.json()

    async def _open_doors(self) -> aiohttp.ClientSession:
        for node, registry in zip(self._nodes.nodes, self._private, strict=True):
            site = Site(private_app(node, registry, self._settings), header_timeout_s=75.0)
            sockets = listen("127.0.0.1", 0)
            await site.start(sockets)
            self._stack.push_async_callback(site.stop)
            self._urls.append(f"{site.urls[0]}/backend")
        return await self._stack.enter_async_context(aiohttp.ClientSession())


def services() -> list[Any]:
    return [
        InfoService(),
        PubSubService(channels=RULES, unmatched="open"),
        AuthService(),
        ChatService(unmatched="open"),
        MessagingService(unmatched="open"),
        CursorsService(unmatched="open"),
        DataSyncService(dealers=DEALERS),
        GuardedPubSub("guarded_pubsub", unmatched="open"),
        GuardedChat("guarded_chat", unmatched="open"),
        GuardedMessaging("guarded_messaging", unmatched="open"),
        GuardedCursors("guarded_cursors", unmatched="open"),
        Broken("broken"),
    ]


@asynccontextmanager
async def local_stage(count: int, house: str, encodings: Sequence[str] = ("json",)) -> AsyncIterator[LocalStage]:
    """Run nodes. house: see Scenario."""
    common = _Common()
    settings = Auth(leeway_s=0.0, timeout_s=DEADLINE_S)

    def auth(metrics: Metrics) -> Authenticator:
        verifier = None if house == "keyless" else Verifier(FixedKey(Key("HS256", SECRET.encode())), settings)
        return Authenticator(verifier, metrics=metrics, revocations=common, auth=settings)

    private = Private(api_key=ApiKey.parse(API_KEY)) if house == "open" else Private()
    is_required = house == "required"
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(town(count, services, late=3, auth=auth, requires_identity=is_required))
        yield LocalStage(nodes, encodings, private, stack)
