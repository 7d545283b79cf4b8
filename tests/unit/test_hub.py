"""The hub against a model: who subscribes to what, and who was a channel's last."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.codec import PAYLOAD, Template
from gateway.connection import Connection
from gateway.errors import AlreadySubscribed, NotSubscribed
from gateway.hub import Hub
from tests.support.clients import JSON, MSGPACK, FakeWire

TEMPLATE = Template("s", PAYLOAD)
KEYS = [f"s:{name}" for name in "abcd"]
PEOPLE = st.integers(0, 4)


def connection(serial: int = 1) -> Connection:
    return Connection(FakeWire(), (JSON, MSGPACK)[serial % 2], node_id="n", serial=serial)


class HubMachine(RuleBasedStateMachine):
    """The model: a set of (connection, key)."""

    @initialize()
    def start(self) -> None:
        self.hub = Hub()
        self.connections = [connection(serial) for serial in range(5)]
        self.model: set[tuple[int, str]] = set()

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
    def remove(self, who: int, key: str) -> None:
        if (who, key) not in self.model:
            with pytest.raises(NotSubscribed):
                self.hub.remove(self.connections[who], key)
        else:
            self.model.discard((who, key))
            assert self.hub.remove(self.connections[who], key) is not self.subscribers_left(key)

    @rule(who=PEOPLE)
    def remove_all(self, who: int) -> None:
        had = {key for somebody, key in self.model if somebody == who}
        self.model -= {(who, key) for key in had}
        lasts = self.hub.remove_all(self.connections[who])
        assert sorted(lasts) == sorted(key for key in had if not self.subscribers(key))

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
            standing = [(dialect, each) for dialect, group in channel.groups.items() for each in group]
            assert {each for _, each in standing} == expected
            assert len(standing) == len(expected) == channel.size
            assert all(each.dialect is dialect for dialect, each in standing)
            assert all(channel.groups.values()), "an empty group would be framed for nobody"

    @invariant()
    def counts_are_right(self) -> None:
        assert self.hub.subscriptions == len(self.model)
        assert len(self.hub) == len({key for _, key in self.model})


HubMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHubAgainstModel = HubMachine.TestCase


def test_channel_made_again_is_a_new_one() -> None:
    """A pass over the old one under way must not reach who came later."""
    hub, one = Hub(), connection()
    hub.add(one, "s:a", TEMPLATE)
    before = hub.get("s:a")
    hub.remove(one, "s:a")
    hub.add(one, "s:a", TEMPLATE)
    assert hub.get("s:a") is not before
    assert before is not None and not before.groups


def test_first_template_counts() -> None:
    hub, other = Hub(), Template("s", {"other": PAYLOAD})
    hub.add(connection(1), "s:a", TEMPLATE)
    hub.add(connection(2), "s:a", other)
    channel = hub.get("s:a")
    assert channel is not None and channel.template is TEMPLATE
