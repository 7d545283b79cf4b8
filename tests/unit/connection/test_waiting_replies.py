"""Replies that clients do not read: bounded for one client before they are written, and for the whole node."""

import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from snorky.gateway import CloseCode, Connection, Member, Owner, Service
from snorky.gateway.connection.waiting_replies import WaitingReplies
from snorky.services.chat import ChatService
from snorky.services.cursors import CursorsService
from snorky.services.messaging import MessagingService
from tests.support.fakes.fake_wire import JSON, UNLIMITED, FullWire, read_nothing, until
from tests.support.fakes.memory_cluster import Resident, Town, town

MIB = 1 << 20
LIMITS = type(UNLIMITED)(messages_per_s=1e9, messages_burst=1_000_000, replies_max_bytes=4 * MIB)


class Customer:
    """A client with queued replies. Closing it removes them."""

    def __init__(self, waiting: WaitingReplies) -> None:
        self.waiting = waiting
        self.closes: list[int] = []

    def close(self, code: int, reason: str = "") -> None:
        self.closes.append(code)
        self.waiting.settle(self)


def test_those_for_whom_most_waits_are_closed_until_a_quarter_is_free() -> None:
    relieved: list[tuple[int, int]] = []
    waiting = WaitingReplies(1000, lambda clients, size: relieved.append((clients, size)))
    customers = [Customer(waiting) for _ in range(4)]
    for customer, size in zip(customers, (100, 500, 300, 100), strict=True):
        waiting.add(customer, size)
    assert (waiting.total_bytes, relieved) == (1000, [])
    waiting.add(customers[0], 1)
    assert [customer.closes for customer in customers] == [[], [CloseCode.SLOW_CONSUMER], [], []]
    assert (waiting.total_bytes, relieved) == (501, [(1, 500)])


def test_replies_that_were_read_are_no_longer_counted() -> None:
    waiting = WaitingReplies(1000)
    customer = Customer(waiting)
    waiting.add(customer, 600)
    waiting.settle(customer, 700)
    assert waiting.total_bytes == 600
    waiting.settle(customer, 200)
    assert waiting.total_bytes == 200
    waiting.settle(customer)
    waiting.settle(customer)
    assert (waiting.total_bytes, customer.closes) == (0, [])


def services() -> list[Service]:
    return [MessagingService(), ChatService(), CursorsService()]


async def _names(nodes: Town, size: int) -> None:
    """Let clients register names until their list has that many bytes."""
    for number in range(size // 253 // 100 + 1):
        holder = nodes.client(0, f"holder {number}")
        for name in range(100):
            await holder.ask("messaging", "registerParticipant", name=f"{number:03d} {name:02d}".ljust(250, "x"))


async def test_many_clients_that_request_lists_and_read_nothing_use_bounded_memory() -> None:
    async with town(1, services, limits=LIMITS) as nodes:
        await _names(nodes, MIB // 2)
        honest = nodes.client(0, "honest")
        crowd = [nodes.client(0) for _ in range(60)]
        wires = [read_nothing(client) for client in crowd]
        with capture_logs() as logs:
            for asked in range(1, 4):
                for client in crowd:
                    if not client.connection.is_closed:
                        client.call("messaging", "listParticipants")
                await until(lambda asked=asked: all(wire.closes or len(wire.writes) == asked for wire in wires))
                held = sum(wire.buffered for wire in wires if not wire.closes)
                assert held <= LIMITS.replies_max_bytes
                assert nodes.nodes[0].metrics.registry.get_sample_value("snorky_waiting_reply_bytes") == held
        assert all(wire.buffered <= LIMITS.outbox_max_bytes for wire in wires), "counted before they are written"
        assert {code for wire in wires for code, _ in wire.closes} == {CloseCode.SLOW_CONSUMER}
        assert {each["event"] for each in logs} == {"clients that read no replies were closed"} and len(logs) < 10
        assert len(await honest.ask("messaging", "listParticipants")) >= 2000
        assert not honest.connection.is_closed


async def test_those_that_ask_at_the_same_time_share_one_list() -> None:
    async with town(1, services, limits=LIMITS) as nodes:
        await _names(nodes, 100_000)
        listed = 0
        list_names = nodes.directories[0].list_names

        async def counted(names: str) -> list[str]:
            nonlocal listed
            listed += 1
            return await list_names(names)

        nodes.directories[0].list_names = counted  # type: ignore[method-assign]
        crowd = [nodes.client(0) for _ in range(60)]
        calls = [client.call("messaging", "listParticipants") for client in crowd]
        answers = [await client.answer(call) for client, call in zip(crowd, calls, strict=True)]
        assert all(answer == answers[0] for answer in answers) and len(answers[0]) >= 400
        assert listed <= 2
        late = nodes.client(0, "late")
        await late.ask("messaging", "registerParticipant", name="late")
        assert "late" in await late.ask("messaging", "listParticipants"), "never what was read before it asked"


async def test_a_list_that_no_client_could_take_is_refused_and_counted() -> None:
    async with town(1, services, limits=LIMITS) as nodes:
        await _names(nodes, MIB)
        answer = await nodes.client(0).ask("messaging", "listParticipants")
        assert answer == f"Error: The answer is larger than {MIB} bytes: ask for less"
        labels = {"door": "command", "reason": "too_large"}
        assert nodes.nodes[0].metrics.registry.get_sample_value("snorky_refusals_total", labels) == 1


@pytest.mark.parametrize("position", ["x" * 60_000, ["x" * 3000, "x" * 1100]])
async def test_a_cursor_is_bounded_in_bytes(position: Any) -> None:
    async with town(1, services) as nodes:
        ann = nodes.client(0, "ann")
        await ann.ask("cursors", "join", document=1)
        large = await ann.ask("cursors", "createCursor", privateHandle=1, document=1, position=position, status=None)
        assert large == "Error: A cursor takes at most 4096 bytes"
        assert isinstance(
            await ann.ask("cursors", "createCursor", privateHandle=1, document=1, position=0, status=0), int
        )
        large = await ann.ask("cursors", "updateCursor", privateHandle=1, newData={"position": position})
        assert large == "Error: A cursor takes at most 4096 bytes"
        told = await nodes.client(0, "bob").ask("cursors", "join", document=1)
        assert [each["position"] for each in told["cursors"]] == [0], "refused calls changed nothing"


async def test_a_full_document_refuses_more_and_changes_nothing() -> None:
    async with town(1, services) as nodes:
        nodes.cluster.roster_max_bytes = 300
        ann = nodes.client(0, "ann")
        await ann.ask("cursors", "join", document=1)
        await ann.ask("cursors", "createCursor", privateHandle=1, document=1, position="x" * 100, status=0)
        full = "Error: Full: its members and their data take 300 bytes already"
        assert await ann.ask("cursors", "updateCursor", privateHandle=1, newData={"position": "y" * 300}) == full
        for _ in range(2):
            second = {"privateHandle": 2, "document": 1, "position": "y" * 100, "status": 0}
            assert await ann.ask("cursors", "createCursor", **second) == full
        assert await ann.ask("cursors", "updateCursor", privateHandle=1, newData={"status": 1}) is None
        told = await nodes.client(0, "bob").ask("cursors", "join", document=1)
        assert [(each["position"], each["status"]) for each in told["cursors"]] == [("x" * 100, 1)]
        ((_, member),) = nodes.nodes[0].ownership.local_members()
        assert member.data == {"position": "x" * 100, "status": 1}
        nodes.cluster.flush()
        assert [each.data["status"] for each in await nodes.directories[0].members("cursors:~1")] == [1]


async def _crowded(nodes: Town, service: str) -> Resident:
    """Let a room, or a document, become too large for one reply."""
    author: Any = None
    for number in range(300 if service == "cursors" else 0):
        if number % 16 == 0:
            author = nodes.client(0, f"author {number}")
            await author.ask("cursors", "join", document="d")
        await author.ask(
            "cursors", "createCursor", privateHandle=number, document="d", position="x" * 4000, status=None
        )
    for number in range(60 if service == "chat" else 0):
        member = Member(f"{number} ".ljust(20_000, "x"), Owner("n9", "i", number))
        nodes.cluster.enter("chat:d", member, nodes.nodes[0].ownership)
    return nodes.client(0, "newcomer")


@pytest.mark.parametrize(("service", "parameter"), [("cursors", "document"), ("chat", "channel")])
async def test_a_join_with_a_list_too_large_for_a_client_leaves_no_state(service: str, parameter: str) -> None:
    async with town(1, services, limits=LIMITS) as nodes:
        newcomer = await _crowded(nodes, service)
        answer = await newcomer.ask(service, "join", **{parameter: "d"})
        assert answer == f"Error: The answer is larger than {MIB} bytes: ask for less"
        assert newcomer.connection.channels == set()
        members = await nodes.directories[0].members(f"{service}:d")
        assert members and all(member.identity != "newcomer" for member in members)
        again = await newcomer.ask(service, "leave", **{parameter: "d"})
        assert again == "Error: Not joined"


async def test_other_queued_bytes_count_with_a_reply() -> None:
    async with town(1, services, limits=LIMITS) as nodes:
        await _names(nodes, MIB * 3 // 4)
        client = nodes.client(0)
        client.wire.buffered = MIB // 2
        client.call("messaging", "listParticipants")
        await until(lambda: client.connection.is_closed)
        assert client.wire.closes == [(CloseCode.SLOW_CONSUMER, "Slow consumer")]
        assert client.wire.writes == []


async def test_a_client_that_reads_again_is_counted_no_more() -> None:
    async with town(1, services, limits=LIMITS) as nodes:
        await _names(nodes, MIB // 4)
        client = nodes.client(0)
        wire = read_nothing(client)
        calls = [client.call("messaging", "listParticipants") for _ in range(2)]
        await until(lambda: client.connection.pending_bytes > MIB // 2)

        def counted() -> float | None:
            return nodes.nodes[0].metrics.registry.get_sample_value("snorky_waiting_reply_bytes")

        assert counted() == client.connection.pending_bytes
        wire.buffered = 0
        client.connection.resume()
        assert counted() == wire.buffered > 0, "the second is in flight"
        wire.buffered = 0
        client.connection.resume()
        assert counted() == 0
        assert len([line for line in b"".join(wire.writes).splitlines() if json.loads(line)]) == len(calls)


def test_a_wire_that_takes_all_costs_no_count() -> None:
    wire = FullWire(high_water=1000)
    waiting = WaitingReplies(10)
    wire.connection = connection = Connection(wire, JSON, node_id="n", serial=1, waiting=waiting)
    connection.send({"service": "a", "message": 1})
    assert (waiting.total_bytes, connection.is_closed) == (0, False)
