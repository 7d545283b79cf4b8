"""MemoryClient: a client of one node of a cluster in memory. Each of its waits has a deadline."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from snorky.gateway.node import Node
from snorky.gateway.protocol.codec import Encoding, decode_json, encode
from snorky.gateway.sdk.registry import ServiceRegistry
from snorky.gateway.testing.transport import JSON, FakeTransport

__all__ = ["CallFailed", "MemoryClient", "NotReceived"]

_SHOWN: Final = 5  # messages in the text of an error


class CallFailed(Exception):
    """The reply to a call is an error. code, text: of the error. reply: the whole message."""

    def __init__(self, service: str, command: str, reply: dict[str, Any]) -> None:
        self.code: str = reply.get("code", "")
        self.text: str = reply.get("message", "")
        self.reply = reply
        super().__init__(f"{service}.{command}: {self.text} ({self.code})")


class NotReceived(AssertionError):
    """A client did not receive what the test waited for, within the deadline or before its connection was closed."""


class _ClientTransport(FakeTransport):
    """Passes what the node writes to the client."""

    def __init__(self, on_data: Callable[[bytes], None], on_closed: Callable[[int], None]) -> None:
        super().__init__()
        self._on_data = on_data
        self._on_closed = on_closed

    def write(self, data: bytes) -> None:
        super().write(data)
        self._on_data(data)

    def close(self, code: int, reason: str) -> None:
        super().close(code, reason)
        self._on_closed(int(code))


class MemoryClient:
    """A client that is connected to one node. `MemoryCluster.connect` makes it.

    connection: the node's object for this client, as services see it. envelopes: everything that the client
    received, in order, replies included. unread: the messages that `next_message` has not returned yet.
    """

    def __init__(self, node: Node, registry: ServiceRegistry, identity: str | None, *, deadline_s: float) -> None:
        self.wire: FakeTransport = _ClientTransport(self._receive, self._closing)
        self.envelopes: list[Any] = []
        self.close_code: int | None = None
        self._node = node
        self._registry = registry
        self._deadline_s = deadline_s
        self._changed = asyncio.Event()
        self._calls: dict[int, tuple[str, str]] = {}
        self._replies: dict[int, dict[str, Any]] = {}
        self._unread: list[tuple[str, Any]] = []  # (service, message)
        self.connection = node.new_connection(self.wire, JSON)
        self.connection.identity = identity
        node.connect(self.connection, registry)

    def __repr__(self) -> str:
        return f"<MemoryClient {self.connection.identity or self.connection.id} of node {self._node.node_id}>"

    @property
    def is_closed(self) -> bool:
        """True if either side has closed the connection. `close_code` then has the code."""
        return self.close_code is not None

    @property
    def unread(self) -> list[Any]:
        """The messages that `next_message` has not returned yet, in order. Replies to calls are not among them."""
        return [message for _, message in self._unread]

    async def call(self, service: str, command: str, /, **params: Any) -> Any:
        """Send a command and return the data of its reply. Raises CallFailed, NotReceived."""
        call_id = self.start_call(service, command, **params)
        reply = await self.reply_to(call_id)
        if reply["type"] == "error":
            raise CallFailed(service, command, reply)
        return reply.get("data")

    def start_call(self, service: str, command: str, /, **params: Any) -> int:
        """Send a command without waiting; returns the call id for `reply_to`."""
        call_id = len(self._calls) + 1
        self._calls[call_id] = (service, command)
        self.send(service, {"command": command, "params": params, "callId": call_id})
        return call_id

    async def reply_to(self, call_id: int) -> dict[str, Any]:
        """Wait for the reply to a call; returns the whole message. Raises NotReceived."""
        service, command = self._calls[call_id]
        await self._wait(lambda: call_id in self._replies, f"the reply to {service}.{command}")
        return self._replies[call_id]

    def send(self, service: str, message: Any) -> None:
        """Send any message. If the connection is closed, nothing is sent."""
        if not self.is_closed:
            envelope = {"service": service, "message": message}
            self._registry.receive(self.connection, encode(envelope, Encoding.JSON))

    async def next_message(self, service: str | None = None) -> Any:
        """Wait for the next message that is no reply to a call, and return it. service: only of this one.

        Raises NotReceived.
        """

        def found() -> int | None:
            return next((at for at, (name, _) in enumerate(self._unread) if service in (None, name)), None)

        what = "a message" if service is None else f"a message of the service {service}"
        await self._wait(lambda: found() is not None, what)
        return self._unread.pop(found() or 0)[1]

    async def closed(self) -> int:
        """Wait until the connection is closed, and return the close code. Raises NotReceived."""
        await self._wait(lambda: self.is_closed, "the end of the connection")
        return self.close_code or 0

    def disconnect(self, code: int = 1000) -> None:
        """Close the connection, as a client does that leaves. Its node releases its roster entries and names soon."""
        self._end(code)

    # -- the node's side ---------------------------------------------------------------------------------

    def _receive(self, data: bytes) -> None:
        for line in data.splitlines():
            envelope: Any = decode_json(line)
            message = envelope["message"]
            self.envelopes.append(envelope)
            if self._is_reply(message):
                self._replies[message["callId"]] = message
            else:
                self._unread.append((envelope["service"], message))
        self._changed.set()

    def _is_reply(self, message: Any) -> bool:
        is_of_call = isinstance(message, dict) and message.get("type") in ("response", "error")
        return is_of_call and message.get("callId") in self._calls

    def _closing(self, code: int) -> None:
        asyncio.get_running_loop().call_soon(self._end, code)  # like a network: the node hears of the end later

    def _end(self, code: int) -> None:
        if self.close_code is None:
            self.close_code = code
        self._node.disconnect(self.connection, code)
        self._node.cluster_limits.counts.forget(self.connection)
        self._changed.set()

    async def _wait(self, is_there: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                while not is_there():
                    if self.is_closed:
                        raise NotReceived(f"{self!r}: closed with {self.close_code} before {what}; {self._state()}")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise NotReceived(f"{self!r}: {what} did not arrive in {self._deadline_s:g} s; {self._state()}") from None

    def _state(self) -> str:
        unread = self.unread
        shown = ", ".join(repr(message)[:200] for message in unread[-_SHOWN:])
        return f"{len(unread)} unread messages" + (f", the last ones: {shown}" if shown else "")
