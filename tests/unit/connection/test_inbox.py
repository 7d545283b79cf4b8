"""The inbox, through the registry: order per connection, no waiting for others, a bound, and an end without loss."""

import asyncio
import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from snorky.gateway import Connection, Service
from snorky.gateway.connection.inbox import MAX_BYTES, MAX_MESSAGES, RESUME_MESSAGES
from snorky.gateway.sdk.registry import AWAITED_PORTION
from tests.support.fakes.fake_wire import Client, House, house, settle, until


class Gated(Service):
    """Echoes; a message `[gate, value]` waits for the gate of that number first. Records the order of starts."""

    def __init__(self) -> None:
        super().__init__("gated")
        self.gates: dict[int, asyncio.Future[None]] = {}
        self.begun: list[Any] = []
        self.cancelled: list[Any] = []

    def gate(self, number: int) -> "asyncio.Future[None]":
        return self.gates.setdefault(number, asyncio.get_running_loop().create_future())

    def open(self, number: int) -> None:
        if not self.gate(number).done():
            self.gate(number).set_result(None)

    def on_message(self, connection: Connection, message: Any) -> Any:
        self.begun.append(message)
        if isinstance(message, list):
            return self._later(connection, message)
        self.send(connection, message)
        return None

    async def _later(self, connection: Connection, message: Any) -> None:
        try:
            await asyncio.shield(self.gate(message[0]))
        except asyncio.CancelledError:
            self.cancelled.append(message)
            raise
        self.send(connection, message)


def inboxes(built: House) -> int:
    return len(built.registry._inboxes)


async def test_messages_of_one_connection_are_handled_one_after_another() -> None:
    service = Gated()
    async with house(service) as built:
        client = built.client()
        for message in ([1, "a"], "b", [2, "c"], "d"):
            client.send("gated", message)
        await settle()
        assert service.begun == [[1, "a"]]
        assert client.messages == []
        service.open(2)
        await settle()
        assert client.messages == []
        service.open(1)
        assert await client.received(4) == [[1, "a"], "b", [2, "c"], "d"]


async def test_other_connections_do_not_wait() -> None:
    service = Gated()
    async with house(service) as built:
        waiting, other = built.client(), built.client()
        waiting.send("gated", [1, "a"])
        other.send("gated", "b")
        assert other.messages == ["b"]
        other.send("gated", [2, "c"])
        service.open(2)
        assert await other.received(2) == ["b", [2, "c"]]
        assert waiting.messages == []


async def test_plain_answers_need_no_inbox() -> None:
    async with house(Gated()) as built:
        client = built.client()
        for number in range(100):
            client.send("gated", number)
        assert client.messages == list(range(100))
        assert inboxes(built) == 0


async def test_inbox_is_removed_when_everything_is_answered() -> None:
    service = Gated()
    async with house(service) as built:
        client = built.client()
        client.send("gated", [1, "a"])
        client.send("gated", "b")
        assert inboxes(built) == 1
        service.open(1)
        await client.received(2)
        await until(lambda: inboxes(built) == 0)
        client.send("gated", "c")
        assert client.messages == [[1, "a"], "b", "c"]


async def test_message_in_the_tick_in_which_the_task_ends_is_not_lost() -> None:
    """At every position among the callbacks of that loop iteration: before the task's last step, in it, after it."""
    for ticks_before in range(8):
        service = Gated()
        async with house(service) as built:
            client = built.client()
            client.send("gated", [1, "a"])
            await settle()
            loop = asyncio.get_running_loop()
            sent: list[Any] = [[1, "a"]]

            def send(message: str, client: Client = client, sent: list[Any] = sent) -> None:
                sent.append(message)
                client.send("gated", message)

            loop.call_soon(send, "before the task is woken")
            service.open(1)
            loop.call_soon(send, "after")
            for _ in range(ticks_before):
                await asyncio.sleep(0)
            send(f"{ticks_before} ticks later")
            assert await client.received(4) == sent
            assert inboxes(built) == 0


@settings(max_examples=100, deadline=None)
@given(
    actions=st.lists(
        st.one_of(
            st.tuples(st.just("plain"), st.integers(0, 2)),
            st.tuples(st.just("wait"), st.integers(0, 2)),
            st.tuples(st.just("tick"), st.integers(1, 4)),
            st.tuples(st.just("open"), st.just(0)),
        ),
        max_size=40,
    )
)
def test_every_message_is_answered_once_and_in_order_whatever_the_timing(actions: list[tuple[str, int]]) -> None:
    async def run() -> None:
        service = Gated()
        async with house(service) as built:
            clients = [built.client() for _ in range(3)]
            sent: list[list[Any]] = [[], [], []]
            number = opened = 0
            for action, argument in actions:
                if action == "tick":
                    await settle(argument)
                elif action == "open":
                    service.open(opened)
                    opened += 1
                else:
                    message: Any = number if action == "plain" else [number, "later"]
                    sent[argument].append(message)
                    clients[argument].send("gated", message)
                    number += 1
            for gate in range(number):
                service.open(gate)
            await until(lambda: inboxes(built) == 0)
            await settle()
            assert [client.messages for client in clients] == sent

    asyncio.run(run())


# -- bound ------------------------------------------------------------------------------------------------------


async def test_too_many_waiting_messages_pause_reading_once_and_resume_it_once() -> None:
    service = Gated()
    async with house(service) as built:
        client = built.client()
        client.send("gated", [0, 0])
        for number in range(1, MAX_MESSAGES):
            client.send("gated", [number, number])
        assert client.wire.reading_changes == []
        for number in range(MAX_MESSAGES, MAX_MESSAGES + 30):  # from the same read
            client.send("gated", [number, number])
        assert client.wire.reading_changes == [False]
        for number in range(MAX_MESSAGES + 30 - RESUME_MESSAGES - 2):
            service.open(number)
        await settle(500)
        assert client.wire.reading_changes == [False]
        for number in range(MAX_MESSAGES + 30):
            service.open(number)
        await until(lambda: inboxes(built) == 0)
        assert client.wire.reading_changes == [False, True]
        assert client.messages == [[number, number] for number in range(MAX_MESSAGES + 30)]


# -- the end ----------------------------------------------------------------------------------------------------


async def test_disconnect_cancels_the_running_call_and_queued_ones_never_start() -> None:
    service = Gated()
    async with house(service) as built:
        client = built.client()
        client.send("gated", [1, "a"])
        client.send("gated", "b")
        await settle()
        with capture_logs() as logs:
            client.leave()
            await settle()
        assert logs == []
        assert service.cancelled == [[1, "a"]]
        assert service.begun == [[1, "a"]]
        assert inboxes(built) == 0


async def test_disconnect_in_the_loop_iteration_of_the_message_leaves_no_state() -> None:
    """The task has not run yet: cancelled then, it would never run its `finally`."""
    service = Gated()
    async with house(service) as built:
        client = built.client()
        client.send("gated", [1, "a"])
        client.leave()
        await settle()
        assert inboxes(built) == 0
        assert service.cancelled == [[1, "a"]]


async def test_stop_cancels_the_running_call_even_in_the_loop_iteration_of_its_message() -> None:
    service = Gated()
    async with house(service) as built:
        old, new = built.client(), built.client()
        old.send("gated", [1, "a"])
        await settle()
        new.send("gated", [2, "b"])
        with capture_logs() as logs:
            await built.registry.stop()
        assert logs == []
        assert old.messages == new.messages == []
        assert sorted(service.cancelled) == [[1, "a"], [2, "b"]]
        assert inboxes(built) == 0


async def test_closed_connection_has_no_more_of_its_messages_answered() -> None:
    service = Gated()
    async with house(service) as built:
        client = built.client()
        for message in ([1, "a"], "b"):
            client.send("gated", message)
        client.connection.close(4008)
        client.send("gated", "c")
        service.open(1)
        await until(lambda: inboxes(built) == 0)
        assert service.begun == [[1, "a"]]


async def test_cancellation_of_something_awaited_is_an_error_and_not_the_end() -> None:
    """A service awaited something that another task cancelled: the following messages are still answered."""
    service = Gated()
    async with house(service) as built:
        client = built.client()
        client.send("gated", [1, "a"])
        for number in range(MAX_MESSAGES):
            client.send("gated", number)
        await settle()
        assert not client.wire.is_reading
        with capture_logs() as logs:
            service.gate(1).cancel()
            messages = await client.received(1 + MAX_MESSAGES)
        assert messages[0]["message"] == "Internal error"
        assert messages[1:] == list(range(MAX_MESSAGES))
        assert client.wire.is_reading
        assert [entry["event"] for entry in logs] == ["service failed"]


async def test_service_that_fails_while_awaited_does_not_stop_the_inbox() -> None:
    class Failing(Gated):
        async def _later(self, connection: Connection, message: Any) -> None:
            await asyncio.sleep(0)
            raise RuntimeError("secret")

    async with house(Failing()) as built:
        client: Client = built.client()
        with capture_logs() as logs:
            for message in ([1, "a"], "b", [2, "c"], "d"):
                client.send("gated", message)
            messages = await client.received(4)
        assert [each if isinstance(each, str) else each["message"] for each in messages] == [
            "Internal error", "b", "Internal error", "d",
        ]  # fmt: skip
        assert len(logs) == 2
        assert "secret" not in str(messages)


async def test_messages_that_wait_are_bounded_in_bytes_too() -> None:
    service = Gated()
    async with house(service) as built:
        client = built.client()
        client.send("gated", [0, "first"])
        large = "x" * (MAX_BYTES // 4)
        for number in range(3):
            client.send("gated", [0, large, number])
        assert client.wire.is_reading
        client.send("gated", [1, large, 3])
        assert not client.wire.is_reading
        service.open(0)
        await settle()
        assert client.wire.is_reading
        service.open(1)
        assert len(await client.received(5)) == 5


async def test_messages_that_are_awaited_begin_in_portions() -> None:
    """Many that begin in one iteration of the loop would delay all other clients."""
    service = Begun()
    async with house(service) as built:
        for number in range(5 * AWAITED_PORTION):
            built.client().send("begun", number)
        counts = [0]
        while counts[-1] < 5 * AWAITED_PORTION:
            await asyncio.sleep(0)
            counts.append(len(service.begun))
        assert max(after - before for before, after in itertools.pairwise(counts)) <= 2 * AWAITED_PORTION
        assert service.begun == list(range(5 * AWAITED_PORTION))
        service.release.set()


async def test_a_message_in_the_line_is_not_processed_when_its_client_has_gone() -> None:
    """Services release what a client has in `on_disconnect`: nothing of it may begin after that."""
    service = Begun()
    async with house(service) as built:
        clients = [built.client() for _ in range(3 * AWAITED_PORTION)]
        for number, client in enumerate(clients):
            client.send("begun", number)
        for client in clients[AWAITED_PORTION:]:
            client.leave()
        await until(lambda: len(service.begun) == inboxes(built) == AWAITED_PORTION)
        await settle(60)
        assert service.begun == list(range(AWAITED_PORTION)) and service.ended == []
        service.release.set()


async def test_messages_of_a_client_that_waits_in_the_line_stay_in_order() -> None:
    service = Begun()
    async with house(service, Gated()) as built:
        for number in range(AWAITED_PORTION):
            built.client().send("begun", number)
        client = built.client()
        for number in range(5):
            client.send("gated", number)
        assert client.messages == []
        assert await client.received(5) == list(range(5))
        service.release.set()


class Begun(Service):
    """Its messages wait until they are released. begun, ended: in order."""

    def __init__(self) -> None:
        super().__init__("begun")
        self.begun: list[Any] = []
        self.ended: list[Any] = []
        self.release = asyncio.Event()

    async def on_message(self, connection: Connection, message: Any) -> None:
        self.begun.append(message)
        try:
            await self.release.wait()
        finally:
            self.ended.append(message)
