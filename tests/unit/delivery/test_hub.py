"""The hub against a model: which connection has which subscription, and which was a channel's last."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snorky.gateway.connection.connection import Connection
from snorky.gateway.delivery.groups import NO_GROUP
from snorky.gateway.delivery.hub import NO_GROUPS, Hub
from snorky.gateway.errors import AlreadySubscribed, NotSubscribed
from snorky.gateway.protocol.splicing import PAYLOAD, Template
from tests.support.fakes.fake_wire import JSON, MSGPACK, FakeTransport

TEMPLATE = Template("s", PAYLOAD)
KEYS = [f"s:{name}" for name in "abcd"]
PEOPLE = st.integers(0, 4)


def connection(serial: int = 1) -> Connection:
    return Connection(FakeTransport(), (JSON, MSGPACK)[serial % 2], node_id="n", serial=serial)


class HubMachine(RuleBasedStateMachine):
    """The model: a set of (connection, key), and which of them are pending, or have positions."""

    @initialize()
    def start(self) -> None:
        self.hub = Hub()
        self.connections = [connection(serial) for serial in range(5)]
        self.model: set[tuple[int, str]] = set()
        self.pending: dict[tuple[int, str], int] = {}
        self.positioned: set[tuple[int, str]] = set()

    def subscribers(self, key: str) -> set[int]:
        return {who for who, what in self.model if what == key}

    @rule(who=PEOPLE, key=st.sampled_from(KEYS))
    def add(self, who: int, key: str) -> None:
        if (who, key) in self.model:
            with pytest.raises(AlreadySubscribed):
                self.hub.add(self.connections[who], key, TEMPLATE)
        else:
            self.hub.add(self.connections[who], key, TEMPLATE)
            self.model.add((who, key))

    @rule(who=PEOPLE, key=st.sampled_from(KEYS))
    def add_pending(self, who: int, key: str) -> None:
        if (who, key) not in self.model:
            self.pending[who, key] = self.hub.add(self.connections[who], key, TEMPLATE, is_pending=True)
            self.model.add((who, key))

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def go_live(self, data: st.DataObject) -> None:
        who, key = data.draw(st.sampled_from(sorted(self.pending)))
        assert self.hub.is_pending(self.connections[who], key, self.pending.pop((who, key)))
        self.hub.go_live(self.connections[who], key, lambda position: None)
        self.positioned.add((who, key))

    @rule(who=PEOPLE, key=st.sampled_from(KEYS))
    def remove(self, who: int, key: str) -> None:
        if (who, key) not in self.model:
            with pytest.raises(NotSubscribed):
                self.hub.remove(self.connections[who], key)
        else:
            self.forget(who, key)
            assert self.hub.remove(self.connections[who], key) is not self.subscribers_left(key)

    @rule(who=PEOPLE)
    def remove_all(self, who: int) -> None:
        had = {key for somebody, key in self.model if somebody == who}
        for key in had:
            self.forget(who, key)
        lasts = self.hub.remove_all(self.connections[who])
        assert sorted(lasts) == sorted(key for key in had if not self.subscribers(key))

    def forget(self, who: int, key: str) -> None:
        self.model.discard((who, key))
        self.positioned.discard((who, key))
        self.pending.pop((who, key), None)

    def subscribers_left(self, key: str) -> bool:
        return bool(self.subscribers(key))

    @invariant()
    def connections_and_hub_say_the_same(self) -> None:
        for who, each in enumerate(self.connections):
            assert set(each.channels) == {key for somebody, key in self.model if somebody == who}
        for key in KEYS:
            channel = self.hub.get(key)
            expected = {self.connections[who] for who in self.subscribers(key)}
            assert (key in self.hub) is bool(expected) is (channel is not None)
            if channel is None:
                continue
            pending = {self.connections[who] for who, what in self.pending if what == key}
            positioned = {self.connections[who] for who, what in self.positioned if what == key}
            assert set(channel.pending) == pending
            assert len(expected) == channel.size
            for groups, members in (
                (channel.groups, expected - pending - positioned),
                (channel.positioned, positioned),
            ):
                standing = [(dialect, each) for dialect, group in groups.items() for each in group]
                assert {each for _, each in standing} == members
                assert len(standing) == len(members)
                assert all(each.dialect is dialect for dialect, each in standing)
                assert all(groups.values()), "an empty group would be framed for no subscriber"

    @invariant()
    def each_joining_has_a_number_of_its_own(self) -> None:
        channels = [channel for key in KEYS if (channel := self.hub.get(key)) is not None]
        every = [group for each in channels for group in (*each.groups.values(), *each.positioned.values())]
        numbers = [number for group in [*every, *(each.pending for each in channels)] for number in group.values()]
        assert len(numbers) == len(set(numbers)) == len(self.model)
        assert all(0 < number <= self.hub.joined for number in numbers)

    @invariant()
    def counts_are_right(self) -> None:
        assert self.hub.subscriptions == len(self.model)
        assert len(self.hub) == len({key for _, key in self.model})


HubMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHubAgainstModel = HubMachine.TestCase


def test_channel_made_again_is_a_new_one() -> None:
    """A running pass over the old list must not reach later subscribers."""
    hub, one = Hub(), connection()
    hub.add(one, "s:a", TEMPLATE)
    before = hub.get("s:a")
    hub.remove(one, "s:a")
    hub.add(one, "s:a", TEMPLATE)
    assert hub.get("s:a") is not before
    assert before is not None and not before.groups


def test_a_second_join_is_not_pending_because_of_the_first() -> None:
    hub, one = Hub(), connection()
    first = hub.add(one, "s:a", TEMPLATE, is_pending=True)
    hub.remove(one, "s:a")
    second = hub.add(one, "s:a", TEMPLATE, is_pending=True)
    assert not hub.is_pending(one, "s:a", first)
    assert hub.is_pending(one, "s:a", second)


def test_first_template_counts() -> None:
    hub, other = Hub(), Template("s", {"other": PAYLOAD})
    hub.add(connection(1), "s:a", TEMPLATE)
    hub.add(connection(2), "s:a", other)
    channel = hub.get("s:a")
    assert channel is not None and channel.template is TEMPLATE


def test_a_channel_has_groups_only_for_the_kinds_of_subscribers_that_it_has() -> None:
    hub, plain, other = Hub(), connection(1), connection(2)
    hub.add(plain, "pubsub:a", TEMPLATE)
    number = hub.add(other, "pubsub:b", TEMPLATE, is_pending=True)
    assert hub.is_pending(other, "pubsub:b", number)
    hub.go_live(other, "pubsub:b", lambda _: {})
    first, second = hub.get("pubsub:a"), hub.get("pubsub:b")
    assert first is not None and second is not None
    second.knows(other, 1, now_s=0.0)
    assert second.positioned and second.listed
    assert first.pending is NO_GROUP and first.positioned is NO_GROUPS and first.listed is NO_GROUP
    assert not NO_GROUP and not NO_GROUPS, "all channels share them"
