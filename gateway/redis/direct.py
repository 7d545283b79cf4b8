r"""Direct: messages from node to node, for one connection; in order, once, acknowledged.

On the channel of a node, `PREFIX:{direct NODE}`:

    m ID SENDER INCARNATION SERIAL \n MESSAGE     for a connection of this node; SENDER is told what came of it
    a ID 1 ID 0 ...                               what came of messages of this node: 1 taken, 0 the connection has gone
    l INCARNATION SERIAL \n [NAMES, NAME]         it lost a name to another connection of its identity (claim.lua)

Rules:
- Nothing is sent twice: what was not answered in time may have come or not, and the caller is told just that.
- All that is sent goes through the one pipelined publisher, so it arrives in the order of the calls.
- A channel that nobody hears is a node that has gone.
"""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec
import structlog

from gateway.directory import Owner
from gateway.errors import BrokerUnavailable
from gateway.redis.cluster_broker import AnyBroker
from gateway.redis.names import DIRECT_KEY

__all__ = ["Direct"]

PENDING_MAX = 10_000  # messages of this node that wait for their answer

_log = structlog.get_logger("snorky.redis")


class Direct:
    """One node's end. on_message: (serial, message), False = the connection has gone; on_lost: (names, name, serial);
    on_interrupted: some of these may have been missed.

    is_mine: whether this node is or was of an incarnation.
    """

    def __init__(
        self,
        broker: AnyBroker,
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
        self._next_id = secrets.randbits(48)  # answers to a predecessor of the same name are not taken for ours

    async def start(self) -> None:
        """Return when this node is heard of. Raises BrokerUnavailable."""
        await self._broker.hear(DIRECT_KEY + self._node_id, self._on_payloads, self._on_interrupted)

    def stop(self) -> None:
        """Hear no more; who waits gets BrokerUnavailable. Idempotent."""
        self._broker.unhear(DIRECT_KEY + self._node_id)
        for future in self._pending.values():
            if not future.done():
                future.set_exception(BrokerUnavailable("the directory is stopped"))
        self._pending.clear()

    async def send(self, owner: Owner, message: bytes) -> bool:
        """Send one message; True: taken, False: the connection has gone. Raises BrokerUnavailable: not known."""
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
        """Tell a connection's node that it lost a name, where the script that took it could not."""
        data = f"l {owner.incarnation} {owner.serial}\n".encode() + msgspec.json.encode([names, name])
        self._broker.publish(DIRECT_KEY + owner.node_id, data)

    def _on_payloads(self, payloads: Sequence[bytes]) -> None:
        answers: defaultdict[str, list[str]] = defaultdict(list)
        for payload in payloads:
            try:
                self._on_payload(payload, answers)
            except (ValueError, msgspec.DecodeError) as error:
                _log.warning("direct message is not readable", error=str(error)[:200])
            except Exception as error:  # the foreign code of a service: the others' messages go on
                _log.exception("direct message not taken", error=repr(error))
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
