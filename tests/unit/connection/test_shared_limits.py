"""Shares of addresses and identities, and connection rates of an address: on a manual clock."""

import gc

import pytest

from snorky.gateway.config.settings import Limits
from snorky.gateway.connection import rate_limiter as limiter
from snorky.gateway.connection import shared_limits as shares
from snorky.gateway.connection.shared_limits import Shares, rates_of
from snorky.gateway.http.websocket import handshake_rate as knocks
from snorky.gateway.http.websocket.handshake_rate import Knocks
from tests.unit.connection.test_rate_limiter import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limiter, "monotonic", clock)
    monkeypatch.setattr(knocks, "monotonic", clock)
    return clock


def test_one_address_and_one_identity_have_one_share_each() -> None:
    known = Shares(Limits())
    first, second = known.of("192.0.2.1", "ann"), known.of("192.0.2.2", "ann")
    assert [share.kind for share in first] == ["per_ip", "per_identity"]
    assert first[0] is not second[0] and first[1] is second[1]
    assert known.of("192.0.2.1", None) == first[:1]
    assert known.of("2001:db8::1", None) == known.of("2001:db8::ffff", None)
    assert known.of("", None) == ()
    assert known.of("192.0.2.1", "192.0.2.1")[0] is first[0], "a name is no address"


def test_a_share_has_the_size_from_the_settings(clock: Clock) -> None:
    limits = Limits(messages_per_s=2, messages_burst=3, rate_factor_per_ip=4, rate_factor_per_identity=5)
    address, identity = Shares(limits).of("192.0.2.1", "ann")
    assert (address.messages.burst, identity.messages.burst) == (12, 15)
    assert address.bytes.burst == 4 * limits.bytes_burst
    assert Shares(Limits(rate_factor_per_ip=0)).of("192.0.2.1", "ann")[0].kind == "per_identity"
    assert Shares(Limits(rate_factor_per_identity=0)).of("192.0.2.1", "ann")[0].kind == "per_ip"
    assert Shares(Limits(connections_per_ip=0, rate_factor_per_identity=0)).of("192.0.2.1", "ann") == ()
    assert rates_of(Limits(message_max_bytes=10_000, bytes_burst=1)).bytes_burst == 10_000


def test_a_share_outlives_its_last_connection_and_memory_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shares, "REMEMBERED", 3)
    known = Shares(Limits())
    held = known.of("192.0.2.0", None)[0]
    spent = known.of("192.0.2.1", None)[0]
    spent.messages.tokens = 0.0
    del spent
    gc.collect()
    assert known.of("192.0.2.1", None)[0].messages.tokens == 0.0
    for number in range(2, 10):
        known.of(f"192.0.2.{number}", None)
    gc.collect()
    assert len(known._remembered) == 3
    assert len(known._known) == 4  # those, and the one that a connection holds
    assert known.of("192.0.2.0", None)[0] is held


def test_an_address_may_connect_so_often_and_no_other_address_is_concerned(clock: Clock) -> None:
    door = Knocks(Limits(connections_per_ip=50, handshakes_per_s_per_ip=2))
    assert [door.take("192.0.2.1") for _ in range(101)] == [True] * 100 + [False]
    assert door.take("192.0.2.2")
    clock.now_s += 1
    assert [door.take("192.0.2.1") for _ in range(3)] == [True, True, False]


def test_without_a_limit_anybody_connects(clock: Clock) -> None:
    for limits in (Limits(connections_per_ip=0), Limits(handshakes_per_s_per_ip=0)):
        door = Knocks(limits)
        assert all(door.take("192.0.2.1") for _ in range(5_000))


def test_addresses_that_knock_take_bounded_memory(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knocks, "REMEMBERED", 10)
    door = Knocks(Limits())
    for number in range(100):
        assert door.take(f"192.0.2.{number}")
    assert len(door._buckets) == 10
