"""Messaging: PROTOCOL "Services and their commands", and its guarantees on any number of nodes."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from snorky.gateway import BrokerUnavailable, CloseCode
from snorky.services.messaging import MessagingService
from snorky.services.rpc import Request
from tests.support.fakes.fake_wire import settle, until
from tests.support.fakes.memory_cluster import Resident, town


def services() -> list[MessagingService]:
    return [MessagingService(names_per_client=3)]


async def register(client: Resident, name: Any) -> Any:
    return await client.ask("messaging", "registerParticipant", name=name)


async def send(client: Resident, sender: Any, dest: Any, body: Any = "hi") -> Any:
    return await client.ask("messaging", "send", sender=sender, dest=dest, body=body)


async def test_message_reaches_its_destination_on_another_node() -> None:
    async with town(3, services) as nodes:
        alice, bob, other = nodes.client(0), nodes.client(1), nodes.client(2)
        for client, name in ((alice, "alice"), (bob, {"n": [1, 2]}), (other, "other")):
            assert await register(client, name) is None
        assert await send(alice, "alice", {"n": [1.0, 2]}, {"x": None}) is None
        expected = {"type": "message", "sender": "alice", "dest": {"n": [1, 2]}, "body": {"x": None}}
        assert await bob.notified(1) == [expected]
        await settle()
        assert alice.notifications == other.notifications == []


async def test_send_is_answered_when_the_destinations_node_has_taken_it() -> None:
    async with town(2, services) as nodes:
        alice, bob = nodes.client(0), nodes.client(1)
        await register(alice, "alice")
        await register(bob, "bob")
        call_id = alice.call("messaging", "send", sender="alice", dest="bob", body=1)
        await until(lambda: alice.inbox[-1].get("callId") == call_id)
        assert len(bob.notifications) == 1, "before, or in the same moment"


async def test_name_is_one_clients_in_the_whole_cluster() -> None:
    async with town(3, services) as nodes:
        holder, rival = nodes.client(0), nodes.client(1, "rival")
        assert await register(holder, 1) is None
        for name in (1, 1.0):
            assert await register(rival, name) == "Error: Name already registered"
            assert await register(holder, name) == "Error: Name already registered"
        assert await register(rival, True) is None
        assert await register(rival, "1") is None


async def test_name_is_free_once_released_or_its_client_has_disconnected() -> None:
    async with town(2, services) as nodes:
        first, second = nodes.client(0), nodes.client(1)
        await register(first, "n")
        assert await first.ask("messaging", "unregisterParticipant", name="n") is None
        assert await register(second, "n") is None
        second.leave()
        await until(lambda: not nodes.cluster.names.get("messaging"))
        assert await register(first, "n") is None


async def test_unregistering_anothers_or_an_unknown_name_is_an_error() -> None:
    async with town(2, services) as nodes:
        holder, rival = nodes.client(0), nodes.client(1)
        await register(holder, "n")
        unregister = ("messaging", "unregisterParticipant")
        assert await rival.ask(*unregister, name="n") == "Error: Invalid participant"
        assert await rival.ask(*unregister, name="m") == "Error: Unknown participant"
        assert await holder.ask(*unregister, name="n") is None
        assert await holder.ask(*unregister, name="n") == "Error: Unknown participant"


async def test_sender_must_be_ones_own_name() -> None:
    async with town(2, services) as nodes:
        alice, bob = nodes.client(0), nodes.client(1)
        await register(alice, "alice")
        await register(bob, "bob")
        assert await send(alice, "bob", "bob") == "Error: Invalid sender"
        assert await send(alice, "nobody", "bob") == "Error: Invalid sender"
        assert await send(alice, "nobody", "nowhere") == "Error: Invalid sender"
        assert await send(alice, "alice", "nowhere") == "Error: Unknown destination"
        await settle()
        assert bob.notifications == []


async def test_sending_under_a_name_that_may_have_a_new_owner_fails() -> None:
    async with town(2, services) as nodes:
        alice, bob = nodes.client(0), nodes.client(1)
        await register(alice, "alice")
        await register(bob, "bob")
        directory = nodes.directories[0]
        directory.is_doubtful = True
        assert await send(alice, "alice", "bob") == "Error: Temporarily unavailable"
        assert await send(alice, "bob", "bob") == "Error: Invalid sender"
        assert await send(bob, "bob", "alice") is None, "a participant that can be reached is not queried"
        find, directory.is_doubtful = directory.find, False

        async def stall(names: str, name: str) -> Any:
            directory.is_doubtful = True
            return await find(names, name)

        directory.find = stall  # type: ignore[method-assign]  # it stands still while it is asked
        assert await send(alice, "alice", "bob") == "Error: Temporarily unavailable"
        await settle()
        assert bob.notifications == []


async def test_destination_that_has_just_disconnected_is_unknown() -> None:
    async with town(2, services) as nodes:
        alice, bob = nodes.client(0), nodes.client(1)
        await register(alice, "alice")
        await register(bob, "bob")
        bob.connection.close(1000)  # its node has not received the end yet
        assert await send(alice, "alice", "bob") == "Error: Unknown destination"


async def test_name_that_changes_hands_during_a_send_is_found_again() -> None:
    async with town(3, services) as nodes:
        alice, old, new = nodes.client(0), nodes.client(1, "bob"), nodes.client(2, "bob")
        await register(alice, "alice")
        await register(old, "bob")
        find = nodes.directories[0].find
        answers = [await find("messaging", "bob")]

        async def outdated(names: str, name: str) -> Any:
            return answers.pop() if answers else await find(names, name)

        await register(new, "bob")
        await settle()
        assert old.connection.is_closed
        nodes.directories[0].find = outdated  # type: ignore[method-assign]  # as of before
        assert await send(alice, "alice", "bob") is None
        assert len(await new.notified(1)) == 1


async def test_names_are_listed_in_the_order_of_their_canonical_forms() -> None:
    async with town(2, lambda: [MessagingService()]) as nodes:
        names = ["b", "a", "a!", 10, 9, None, {"x": 1}, [2], True, "é", "~1", "B"]
        for number, name in enumerate(names):
            await register(nodes.client(number), name)
        listed = await nodes.client(1).ask("messaging", "listParticipants")
        assert listed == ["B", "a!", "a", "b", "~1", "é", 10, 9, [2], None, True, {"x": 1}]


async def test_same_identity_takes_its_name_over_and_the_connection_before_is_closed() -> None:
    async with town(2, services) as nodes:
        dead, back, rival = nodes.client(0, "bob"), nodes.client(1, "bob"), nodes.client(1, "eve")
        await register(dead, "bob")
        assert await register(rival, "bob") == "Error: Name already registered"
        assert await register(back, "bob") is None
        await until(lambda: dead.wire.closes)
        assert dead.wire.closes == [(CloseCode.RESYNC, "Name lost")]
        dead.leave(CloseCode.RESYNC)
        await settle()
        await register(rival, "eve")
        assert await send(rival, "eve", "bob") is None, (
            "the dead client's own items were released; this name was not its own"
        )
        assert len(await back.notified(1)) == 1


@pytest.mark.parametrize("is_coroutine", [False, True])
async def test_hook_decides_which_names_are_allowed(is_coroutine: bool) -> None:
    class Guarded(MessagingService):
        def is_name_allowed(self, request: Request, name: Any) -> bool | Awaitable[bool]:
            verdict = name == request.identity
            return asyncio.sleep(0, verdict) if is_coroutine else verdict

    async with town(1, lambda: [Guarded()]) as nodes:
        bob = nodes.client(0, "bob")
        assert await register(bob, "eve") == "Error: Name not allowed"
        assert await register(bob, "bob") is None
        assert await bob.ask("messaging", "listParticipants") == ["bob"]


async def test_client_has_no_more_names_than_it_may() -> None:
    async with town(1, services) as nodes:
        greedy = nodes.client(0)
        for name in range(3):
            assert await register(greedy, name) is None
        assert await register(greedy, 3) == "Error: Too many names"
        await greedy.ask("messaging", "unregisterParticipant", name=0)
        assert await register(greedy, 3) is None


async def test_failed_claim_is_released_unless_claimed_again() -> None:
    async with town(2, services) as nodes:
        client, rival = nodes.client(0), nodes.client(1)
        nodes.cluster.is_failing = True
        for name in ("kept", "lost"):
            assert await register(client, name) == f"Error: {BrokerUnavailable('x')}"
        nodes.cluster.is_failing = False
        assert await register(client, "kept") is None
        nodes.cluster.names["messaging"]["lost"] = nodes.cluster.names["messaging"]["kept"]  # it had succeeded
        task = nodes.nodes[0].ownership._release_task
        assert task is not None
        await task
        assert await register(rival, "kept") == "Error: Name already registered"
        assert await register(rival, "lost") is None


async def test_backends_request_owns_nothing() -> None:
    """The name would never be released: such a connection never ends."""
    async with town(1, services) as nodes:
        node, registry = nodes.nodes[0], nodes.registries[0]
        client = nodes.client(0)
        node.disconnect(client.connection, 1000)
        passing = Resident.__new__(Resident)
        passing.__dict__.update(client.__dict__)
        passing.connection = node.new_connection(client.wire, client.connection.dialect)
        passing.registry = registry
        assert await register(passing, "n") == "Error: Connection closed"
        assert nodes.cluster.names.get("messaging", {}) == {}
