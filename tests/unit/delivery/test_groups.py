"""Groups of subscribers by dialect."""

from snorky.gateway.connection.connection import Connection
from snorky.gateway.delivery.groups import Groups
from tests.support.fakes.fake_wire import JSON, MSGPACK, FakeTransport

A, B, C = (Connection(FakeTransport(), JSON, node_id="n", serial=serial) for serial in range(3))


def test_groups_keep_their_subscribers_whichever_dialect_comes_or_goes_first() -> None:
    for first, second in ((JSON, MSGPACK), (MSGPACK, JSON)):
        groups = Groups()
        assert not groups and list(groups) == [] and groups.items() == () and groups.get(JSON, None) is None
        groups.of(first)[A] = 1
        groups.of(second)[B] = 2
        groups.of(first)[C] = 3
        assert list(groups.items()) == [(first, {A: 1, C: 3}), (second, {B: 2})] and list(groups) == [first, second]
        assert not groups.discard(second, A) and not groups.discard(first, B)
        assert groups.discard(first, A) and groups.get(first, None) == {C: 3}
        assert groups.discard(first, C) and groups.get(first, None) is None
        assert groups and list(groups.items()) == [(second, {B: 2})] and list(groups.values()) == [{B: 2}]
        groups.of(first)[A] = 4
        assert list(groups.items()) == [(second, {B: 2}), (first, {A: 4})]
        assert groups.discard(first, A) and list(groups) == [second]
        assert groups.discard(second, B) and not groups


def test_a_single_group_has_no_dictionary_around_it() -> None:
    groups = Groups()
    groups.of(JSON)[A] = 1
    assert groups._others is None
