r"""Direct: messages from one node to a connection of another node: in order, at most once, acknowledged.

Messages on the Redis channel of a node, `PREFIX:{direct NODE}`:

    m ID SENDER INCARNATION SERIAL \n MESSAGE     for a connection of this node; the result is sent to node SENDER
    a ID 1 ID 0 ...                               results of messages this node sent: 1 delivered, 0 connection closed
    l INCARNATION SERIAL \n [NAMES, NAME]         a connection lost a name to another one of its identity (claim.lua)

Rules:
- Nothing is sent twice. If no acknowledgement arrives in time the outcome is unknown, and the caller gets an error.
- All messages go through one pipelined publisher, so they arrive in the order of the calls.
- If a node's channel has no subscriber, the node is gone.
"""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec
import structlog

from snorky.gateway.contracts.directory import Owner
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.keys import DIRECT_KEY
from snorky.gateway.redis.pubsub.broker import NodeBroker

__all__ = ["Direct"]

PENDING_MAX = 10_000  # messages of this node that are not acknowledged yet

_log = structlog.get_logger("snorky.redis")


class Direct:
    """Sends and receives the direct messages of one node. is_mine: True if this node has or had an incarnation.

    Callbacks: on_message(serial, message) returns False if the connection is closed; on_lost(names, name, serial);
    on_interrupted(): messages to this node may have been missed.
    """

    def __init__(
        self,
        broker: NodeBroker,
        *,
        node_id: str,
        is_mine: Callable[[str], bool],
        on_message: Callable[[int, bytes], bool],
        on_lost: Callable[[str, str, int], None],
        on_interrupted: Callable[[], None],
        timeout_s: float,
    ) -> None:
        self._broker = broker
        self._node_id = node_id
        self._is_mine = is_mine
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_interrupted = on_interrupted
        self._timeout_s = timeout_s
        self._pending: dict[int, asyncio.Future[bool]] = {}
        self._next_id = secrets.randbits(48)  # so answers to a former process with this node_id do not match ours

    async def start(self) -> None:
        """Subscribe; returns when this node receives direct messages. Raises BrokerUnavailable."""
        await self._broker.subscribe_node(DIRECT_KEY + self._node_id, self._on_payloads, self._on_interrupted)

    def stop(self) -> None:
        """Unsubscribe; pending `send` calls raise BrokerUnavailable. Idempotent."""
        self._broker.unsubscribe_node(DIRECT_KEY + self._node_id)
        for future in self._pending.values():
            if not future.done():
                future.set_exception(BrokerUnavailable("the directory is stopped"))
        self._pending.clear()

    async def send(self, owner: Owner, message: bytes) -> bool:
        """Send one message; True: delivered; False: the connection is closed. Raises BrokerUnavailable: unknown."""
        if len(self._pending) >= PENDING_MAX:
            raise BrokerUnavailable("too many direct messages are pending")
        number, self._next_id = self._next_id, self._next_id + 1
        head = f"m {number} {self._node_id} {owner.incarnation} {owner.serial}\n".encode()
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            async with asyncio.timeout(self._timeout_s):
                if not await self._broker.publish(DIRECT_KEY + owner.node_id, head + message):
                    return False
                return await answer
        except TimeoutError as error:
            raise BrokerUnavailable(f"not acknowledged within {self._timeout_s:g} s") from error
        finally:
            self._pending.pop(number, None)

    def tell_lost(self, owner: Owner, names: str, name: str) -> None:
        """Notify a connection's node that it lost a name, if the script that took the name could not publish that."""
        data = f"l {owner.incarnation} {owner.serial}\n".encode() + msgspec.json.encode([names, name])
        self._broker.publish(DIRECT_KEY + owner.node_id, data)

    def _on_payloads(self, payloads: Sequence[bytes]) -> None:
        answers: defaultdict[str, list[str]] = defaultdict(list)
        for payload in payloads:
            try:
                self._on_payload(payload, answers)
            except (ValueError, msgspec.DecodeError) as error:
                _log.warning("direct message is not readable", error=str(error)[:200])
            except Exception as error:  # raised by a service: the other messages must still be delivered
                _log.exception("direct message not processed", error=repr(error))
        for sender, words in answers.items():
            self._broker.publish(DIRECT_KEY + sender, f"a {' '.join(words)}".encode())

    def _on_payload(self, payload: bytes, answers: defaultdict[str, list[str]]) -> None:
        head, _, body = payload.partition(b"\n")
        kind, *words = head.decode().split(" ")
        if kind == "m":
            number, sender, incarnation, serial = words
            is_taken = self._is_mine(incarnation) and self._on_message(int(serial), body)
            answers[sender] += [number, "1" if is_taken else "0"]
        elif kind == "a":
            for number, flag in zip(words[::2], words[1::2], strict=True):
                future = self._pending.get(int(number))
                if future is not None and not future.done():
                    future.set_result(flag == "1")
        elif kind == "l":
            incarnation, serial = words
            names, name = msgspec.json.decode(body, type=tuple[str, str])
            if self._is_mine(incarnation):
                self._on_lost(names, name, int(serial))
