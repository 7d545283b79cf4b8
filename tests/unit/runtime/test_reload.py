"""Reload: changed rules are applied together or not at all; what they no longer permit ends, and nothing else."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from snorky.gateway import Node, ServiceRegistry
from snorky.gateway.config.service_tables import ServiceTable
from snorky.gateway.config.settings import Public, Settings
from snorky.gateway.connection.connection import SERVER_SIDE
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.runtime.gateway import Gateway
from snorky.gateway.runtime.reload import Reloader
from snorky.gateway.sdk.loading import load_registries
from snorky.gateway.sdk.refreshing import RECHECKED_PER_TURN
from snorky.gateway.testing.broker import LoopbackBroker
from snorky.services.pubsub import PubSubService
from snorky.services.rpc import Request, RPCService, rpc_command
from tests.support.fakes.fake_wire import house, until
from tests.support.fakes.memory_cluster import Resident, Town, town

PUBSUB = "snorky.services.pubsub:PubSubService"
END = {"type": "unsubscribed", "channel": "a:1", "code": "not_authorized", "reason": "No longer permitted"}
OPEN = {"match": "a:*", "allow_subscribe": "anyone"}
SHUT = {"match": "a:*", "allow_subscribe": "nobody"}
REFUSED = "Error: Not authorized"


class Slow(PubSubService):
    """Its hook waits for `gate`, and counts the questions."""

    gate = asyncio.Event()
    asked = 0

    async def can_subscribe(self, request: Request, channel: Any) -> bool:
        Slow.asked += 1
        await Slow.gate.wait()
        return True


class Own(RPCService):
    """A service of an application, with an option that only its constructor reads."""

    def __init__(self, name: str = "own", *, limit: int = 1) -> None:
        super().__init__(name)
        self.limit = limit

    @rpc_command
    def get(self, request: Request) -> int:
        return self.limit


def tables(**options: Mapping[str, Any]) -> dict[str, ServiceTable]:
    """Make tables of services from their options."""
    classes = {"pubsub": PUBSUB, "slow": f"{__name__}:Slow", "own": f"{__name__}:Own"}
    standard = {name: f"snorky.services.{name}:{name.title()}Service" for name in ("chat", "cursors", "messaging")}
    standard["datasync"] = "snorky.services.datasync:DataSyncService"
    return {name: ServiceTable({**classes, **standard}[name], each) for name, each in options.items()}


@dataclass
class Running:
    """A cluster of one node whose settings can change. written: what the next reload reads; an error is raised."""

    nodes: Town
    settings: Settings
    written: Settings | ConfigurationError
    reloader: Reloader

    def client(self, identity: str | None = None) -> Resident:
        return self.nodes.client(0, identity)

    async def reload(self, **options: Mapping[str, Any]) -> list[Any]:
        """Write other services, reload, and return the log."""
        self.written = replace(self.settings, services=tables(**options))
        return await self.read_again()

    async def read_again(self) -> list[Any]:
        with capture_logs() as logs:
            await self.reloader.reload()
        return [each for each in logs if each["log_level"] != "debug"]

    def reloads(self, outcome: str) -> float:
        registry = self.nodes.nodes[0].metrics.registry
        return registry.get_sample_value("snorky_settings_reloads_total", {"outcome": outcome}) or 0.0


@asynccontextmanager
async def running(**options: Mapping[str, Any]) -> AsyncIterator[Running]:
    settings = Settings(services=tables(**options), backend={})
    public, _ = load_registries(settings)
    async with town(1, lambda: list(public)) as nodes:
        gateway = cast(Gateway, Held(nodes))
        built = Running(nodes, settings, settings, cast(Reloader, None))

        def read() -> Settings:
            if isinstance(built.written, ConfigurationError):
                raise built.written
            return built.written

        built.reloader = Reloader(gateway, settings, read)
        yield built


class Held:
    """The parts of a gateway that the reloader uses."""

    def __init__(self, nodes: Town) -> None:
        self.node = nodes.nodes[0]
        self.public: ServiceRegistry = nodes.registries[0]


async def test_a_removed_right_ends_its_subscriptions_and_no_others() -> None:
    async with running(pubsub={"channels": [OPEN, {"match": "b"}]}) as built:
        ann, bob = built.client("ann"), built.client("bob")
        for client, channel in ((ann, "a:1"), (ann, "b"), (bob, "b")):
            assert await client.ask("pubsub", "subscribe", channel=channel) is None
        logs = await built.reload(pubsub={"channels": [SHUT, {"match": "b"}]})
        assert [(each["event"], each["changed"]) for each in logs] == [("settings reloaded", "pubsub")]
        assert (ann.notifications, bob.notifications) == ([END], [])
        assert ann.connection.channels == {"pubsub:b"}
        assert await ann.ask("pubsub", "subscribe", channel="a:1") == REFUSED
        await bob.ask("pubsub", "publish", channel="b", message=1)
        await ann.hears({"type": "message", "channel": "b", "message": 1})
        assert (built.reloads("applied"), built.reloads("failed")) == (1, 0)
        # and back again
        await built.reload(pubsub={"channels": [OPEN, {"match": "b"}]})
        assert await ann.ask("pubsub", "subscribe", channel="a:1") is None


async def test_server_side_subscriptions_stay() -> None:
    async with running(pubsub={"channels": [OPEN]}) as built:
        ann = built.client("ann")
        ann.connection.grants = {"pubsub:a:2": SERVER_SIDE}
        for channel in ("a:1", "a:2"):
            assert await ann.ask("pubsub", "subscribe", channel=channel) is None
        await built.reload(pubsub={"channels": [SHUT]})
        assert ann.notifications == [END]
        assert ann.connection.channels == {"pubsub:a:2"}


async def test_unmatched_channels_can_be_closed_and_opened() -> None:
    async with running(pubsub={}) as built:
        ann = built.client()
        assert await ann.ask("pubsub", "subscribe", channel="a:1") is None
        await built.reload(pubsub={"unmatched": "closed"})
        assert ann.notifications == [END]
        await built.reload(pubsub={})
        assert await ann.ask("pubsub", "subscribe", channel="a:1") is None


@pytest.mark.parametrize(
    ("service", "option", "place"), [("chat", "rooms", "channel"), ("cursors", "documents", "document")]
)
async def test_rooms_and_documents_are_left(service: str, option: str, place: str) -> None:
    async with running(**{service: {}}) as built:
        ann, bob = built.client("ann"), built.client("bob")
        for client in (ann, bob):
            await client.ask(service, "join", **{place: "a:1"})
            if service == "cursors":
                await client.ask(service, "createCursor", privateHandle=1, document="a:1", position=0, status=0)
        await built.reload(**{service: {option: [{"match": "*", "allow_join": "nobody"}]}})
        for client in (ann, bob):
            assert END in client.notifications and not client.connection.channels
            assert await client.ask(service, "join", **{place: "a:1"}) == REFUSED
        await until(lambda: not any(built.nodes.cluster.rosters.values()))


async def test_names_that_clients_have_stay_theirs() -> None:
    async with running(messaging={}) as built:
        ann = built.client("ann")
        assert await ann.ask("messaging", "registerParticipant", name="x") is None
        await built.reload(messaging={"names": "{identity}"})
        assert await ann.ask("messaging", "registerParticipant", name="y") == "Error: Name not allowed"
        assert await ann.ask("messaging", "registerParticipant", name="ann") is None
        assert await ann.ask("messaging", "send", sender="x", dest="x", body=1) is None


async def test_models_of_datasync_have_the_new_rules() -> None:
    async with running(datasync={}) as built:
        await built.reload(datasync={"unmatched": "closed"})
        service = built.nodes.registries[0]["datasync"]
        assert service.access is not None and service.access.opened() == ""


async def test_a_subscription_under_way_is_refused_by_the_new_rules() -> None:
    Slow.gate, Slow.asked = asyncio.Event(), 0
    async with running(slow={"channels": [OPEN]}) as built:
        ann = built.client()
        call = ann.call("slow", "subscribe", channel="a:1")
        await until(lambda: Slow.asked == 1)
        await built.reload(slow={"channels": [SHUT]})
        Slow.gate.set()
        assert await ann.answer(call) == REFUSED
        assert not ann.connection.channels
        # one that the rules refuse at once asks no hook
        assert await ann.ask("slow", "subscribe", channel="a:1") == REFUSED
        assert Slow.asked == 1


@pytest.mark.parametrize(
    ("service", "option", "place"), [("chat", "rooms", "channel"), ("cursors", "documents", "document")]
)
async def test_a_join_under_way_is_refused_by_the_new_rules(
    service: str, option: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, asked = asyncio.Event(), []

    async def can_join(request: Request, channel: Any) -> bool:
        asked.append(channel)
        await gate.wait()
        return True

    async with running(**{service: {}}) as built:
        monkeypatch.setattr(built.nodes.registries[0][service], "can_join", can_join)
        ann = built.client("ann")
        call = ann.call(service, "join", **{place: "a:1"})
        await until(lambda: asked)
        await built.reload(**{service: {option: [{"match": "*", "allow_join": "nobody"}]}})
        gate.set()
        assert await ann.answer(call) == REFUSED
        assert not ann.connection.channels
        assert await ann.ask(service, "join", **{place: "a:1"}) == REFUSED
        assert len(asked) == 1


async def test_a_subscription_that_ends_while_redis_confirms_it_is_refused() -> None:
    async with running(pubsub={"channels": [OPEN]}) as built:
        ann, broker = built.client(), built.nodes.nodes[0]
        held = asyncio.Event()
        confirm = broker._broker.subscribe

        async def slow(key: str) -> None:
            await held.wait()
            await confirm(key)

        broker._broker.subscribe = slow  # type: ignore[method-assign]
        call = ann.call("pubsub", "subscribe", channel="a:1")
        await until(lambda: ann.connection.channels)
        await built.reload(pubsub={"channels": [SHUT]})
        held.set()
        assert str(await ann.answer(call)).startswith("Error: ")
        assert not ann.connection.channels


@pytest.mark.parametrize("has_hook", [True, False], ids=["hook", "required"])
async def test_what_no_rule_matches_stays_closed_where_clients_have_identities_without_tokens(has_hook: bool) -> None:
    node, registry = Node(LoopbackBroker()), ServiceRegistry([PubSubService()], requires_identity=not has_hook)
    node.attach(registry)
    if has_hook:
        registry.expect_identities()
    service = registry["pubsub"]
    await node.replace_rules([(service, PubSubService(channels=[{"match": "a"}]))])
    assert service.access is not None and service.access.opened() == ""


async def test_a_service_that_cannot_take_its_rules_keeps_no_client_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(pubsub={"channels": [OPEN]}, chat={}) as built:
        ann = built.client("ann")
        await ann.ask("pubsub", "subscribe", channel="a:1")

        def fail(_other: object) -> None:
            raise RuntimeError("anything")

        monkeypatch.setattr(built.nodes.registries[0]["chat"], "adopt_rules", fail)
        with pytest.raises(RuntimeError):
            await built.reload(pubsub={"channels": [SHUT]}, chat={"unmatched": "closed"})
        assert ann.notifications == [END]


async def test_presence_that_a_rule_no_longer_has_leaves_no_entry() -> None:
    async with running(pubsub={"channels": [{"match": "a:*", "presence": True}]}) as built:
        ann = built.client("ann")
        await ann.ask("pubsub", "subscribe", channel="a:1")
        assert any(built.nodes.cluster.rosters.values())
        await built.reload(pubsub={"channels": [{"match": "a:*"}]})
        assert ann.notifications == []
        await ann.ask("pubsub", "unsubscribe", channel="a:1")
        await until(lambda: not any(built.nodes.cluster.rosters.values()))


async def test_an_error_in_one_service_changes_nothing() -> None:
    wrong = [{"match": "a:*", "allow_subscribe": "nobdy"}, {"history": 1}]
    async with running(pubsub={"channels": [OPEN]}, chat={}) as built:
        ann = built.client("ann")
        await ann.ask("pubsub", "subscribe", channel="a:1")
        (line,) = await built.reload(pubsub={"channels": [SHUT]}, chat={"rooms": wrong})
        assert line["event"] == "settings not reloaded, the rules stay as they are"
        assert "[services.chat] rooms, rule 1: unknown key 'allow_subscribe'" in line["problem_1"]
        assert "rule 2" in line["problem_1"]
        assert ann.notifications == []
        assert (built.reloads("applied"), built.reloads("failed")) == (0, 1)
        # the corrected file is compared with what runs, not with the file that was refused
        await built.reload(pubsub={"channels": [SHUT]}, chat={})
        assert ann.notifications == [END]


async def test_all_problems_of_a_file_are_in_one_line() -> None:
    async with running(pubsub={}) as built:
        built.written = ConfigurationError("\n".join(f"problem {number}" for number in range(30)))
        (line,) = await built.read_again()
        assert (line["log_level"], line["count"], line["problem_1"]) == ("error", 30, "problem 0")
        assert len([name for name in line if name.startswith("problem_")]) == 20


async def test_what_needs_a_restart_is_named_and_not_applied() -> None:
    async with running(pubsub={"channels": [OPEN]}, own={"limit": 1}) as built:
        ann = built.client()
        await ann.ask("pubsub", "subscribe", channel="a:1")
        built.settings = replace(built.settings, public=Public(port=1))
        warning, done = await built.reload(pubsub={"channels": [SHUT]}, own={"limit": 2}, chat={})
        names = "[public] port, [services.chat], [services.own] limit"
        assert (warning["log_level"], warning["settings"]) == ("warning", names)
        assert done["changed"] == "pubsub"
        assert ann.notifications == [END]
        assert await ann.ask("own", "get") == 1
        # it is named again until the restart
        again, _ = await built.reload(pubsub={"channels": [SHUT]}, own={"limit": 2}, chat={})
        assert again["settings"] == names


async def test_a_file_without_changes_ends_nothing() -> None:
    async with running(pubsub={"channels": [OPEN]}) as built:
        ann = built.client()
        await ann.ask("pubsub", "subscribe", channel="a:1")
        (line,) = await built.read_again()
        assert (line["event"], line["changed"]) == ("settings reloaded", "")
        assert ann.notifications == []


async def test_requests_of_one_moment_are_one_reload_and_an_unexpected_error_is_not_the_last() -> None:
    async with running(pubsub={}) as built:
        task = asyncio.create_task(built.reloader.run())
        read: list[int] = []

        def fail() -> Settings:
            read.append(1)
            if len(read) == 1:
                raise RuntimeError("anything")
            return built.settings

        built.reloader._read = fail
        with capture_logs():
            for _ in range(3):
                built.reloader.request()
            await until(lambda: built.reloads("failed") == 1)
            assert len(read) == 1
            built.reloader.request()
            await until(lambda: built.reloads("applied") == 1)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_loop_gets_a_turn_after_a_thousand_connections() -> None:
    count = 2 * RECHECKED_PER_TURN + 1
    service = PubSubService()
    async with house(service) as built:
        clients = [built.client() for _ in range(count)]
        rechecked: list[int] = []
        turns: list[int] = []
        recheck: Callable[..., None] = service.recheck

        def counting(connection: Any) -> None:
            rechecked.append(1)
            recheck(connection)

        service.recheck = counting  # type: ignore[method-assign]
        task = asyncio.create_task(built.node.replace_rules([(service, PubSubService())]))
        while not task.done():
            await asyncio.sleep(0)
            turns.append(len(rechecked))
        assert len(rechecked) == len(clients)
        assert max(after - before for before, after in zip([0, *turns], turns, strict=False)) <= RECHECKED_PER_TURN


async def test_history_of_a_new_rule_is_kept() -> None:
    async with running(pubsub={"channels": [OPEN]}) as built:
        ann = built.client()
        assert await ann.ask("pubsub", "history", channel="a:1") == REFUSED
        await built.reload(pubsub={"channels": [{**OPEN, "history": 5}]})
        await ann.ask("pubsub", "publish", channel="a:1", message=1)
        found = await ann.ask("pubsub", "history", channel="a:1")
        assert [each["message"] for each in found["messages"]] == [1]
