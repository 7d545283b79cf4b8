"""Quotas of what clients may store in Redis, on a manual clock."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from snorky.gateway.config.settings import Limits
from snorky.gateway.connection import rate_limiter as limiter
from snorky.gateway.connection import storage_quotas as quotas
from snorky.gateway.connection.refusals import Refusals
from snorky.gateway.connection.storage_quotas import CHANNEL_BYTES, STORED_S, Quotas
from snorky.gateway.errors import BrokerUnavailable, LimitExceeded
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.pubsub.publisher import PublishRefused
from tests.unit.connection.test_rate_limiter import Clock


@dataclass
class Client:
    identity: str | None = None
    remote_ip: str = ""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limiter, "monotonic", clock)
    monkeypatch.setattr(quotas, "monotonic", clock)
    return clock


def made(**limits: Any) -> tuple[Quotas, Metrics]:
    metrics = Metrics()
    return Quotas(Limits(**limits), metrics, Refusals(metrics)), metrics


def charge(known: Quotas, client: Client, size: int, channel: str | None = None) -> int | None:
    """Returns None, or the ms until a retry may succeed."""
    try:
        known.charge(client, size, channel)  # type: ignore[arg-type]
    except LimitExceeded as error:
        assert error.code == "rate_limited"
        return error.retry_after_ms
    return None


def test_an_identity_has_one_quota_wherever_it_connects(clock: Clock) -> None:
    known, metrics = made(stored_bytes_per_identity=3000)
    assert charge(known, Client("ann", "192.0.2.1"), 2000) is None
    assert charge(known, Client("bob", "192.0.2.1"), 2000) is None
    assert charge(known, Client("ann", "192.0.2.2"), 1001) is not None
    assert charge(known, Client("ann", "192.0.2.2"), 1000) is None
    labels = {"limit": "stored_bytes_per_identity"}
    assert metrics.registry.get_sample_value("snorky_limit_hits_total", labels) == 1


def test_clients_without_identity_share_the_quota_of_their_address(clock: Clock) -> None:
    known, _ = made(stored_bytes_per_ip=3000)
    assert charge(known, Client(None, "2001:db8::1"), 2000) is None
    assert charge(known, Client(None, "2001:db8::2"), 1001) is not None
    assert charge(known, Client(None, "2001:db8:1::2"), 1001) is None


def test_a_quota_fills_again_in_the_time_that_redis_keeps_a_key(clock: Clock) -> None:
    known, _ = made(stored_bytes_per_ip=3000)
    ann = Client(None, "192.0.2.1")
    assert charge(known, ann, 3000) is None
    wait_ms = charge(known, ann, 10)
    assert wait_ms == STORED_S * 1000 * 10 / 3000
    clock.now_s += STORED_S
    assert charge(known, ann, 3000) is None
    assert charge(known, ann, 10) is not None


def test_a_channel_counts_when_it_is_new(clock: Clock) -> None:
    known, _ = made(stored_bytes_per_ip=4 * CHANNEL_BYTES)
    ann = Client(None, "192.0.2.1")
    for _ in range(100):
        assert charge(known, ann, 1, "service:a") is None
    for name in ("b", "c"):
        assert charge(known, ann, 1, name) is None
    assert charge(known, ann, 1, "d") is not None


def test_a_write_larger_than_the_quota_is_accepted_when_the_quota_is_full(clock: Clock) -> None:
    known, _ = made(stored_bytes_per_ip=100)
    ann = Client(None, "192.0.2.1")
    assert charge(known, ann, 5_000) is None
    assert charge(known, ann, 5_000) == STORED_S * 1000


def test_quota_of_a_failed_write_is_returned_once(clock: Clock) -> None:
    known, _ = made(stored_bytes_per_ip=2 * CHANNEL_BYTES)
    ann: Any = Client(None, "192.0.2.1")
    charged = known.charge(ann, 100, "service:a")
    assert charge(known, ann, CHANNEL_BYTES) is not None
    charged.give_back()
    charged.give_back()
    assert charge(known, ann, 100, "service:a") is None, "the channel counts as new again"
    assert charge(known, ann, CHANNEL_BYTES) is not None
    assert charge(known, ann, CHANNEL_BYTES - 100) is None


@pytest.mark.parametrize(
    ("error", "is_given_back"),
    [
        (BrokerUnavailable("timeout"), False),
        (BrokerUnavailable("closed", is_undone=True), True),
        (PublishRefused("OOM command not allowed when used memory > 'maxmemory'."), True),
        (PublishRefused("NOPERM No permissions script: 1f, on @user_script:9."), False),
        (LimitExceeded("roster_max_bytes", "full"), True),
        (ValueError("of ours"), False),
        (None, False),
    ],
)
async def test_quota_is_returned_only_for_writes_that_surely_failed(
    error: Exception | None, is_given_back: bool
) -> None:
    known, _ = made(stored_bytes_per_ip=100)
    ann: Any = Client(None, "192.0.2.1")
    write = asyncio.get_running_loop().create_future()
    write.add_done_callback(known.charge(ann, 100).settle)
    if error is None:
        write.set_result(None)
    else:
        write.set_exception(error)
    await asyncio.wait((write,))
    await asyncio.sleep(0)
    assert (charge(known, ann, 100) is None) is is_given_back


def test_no_limit_and_the_backend_has_none(clock: Clock) -> None:
    for known, client in (
        (made(stored_bytes_per_ip=0)[0], Client(None, "192.0.2.1")),
        (made(connections_per_ip=0)[0], Client(None, "192.0.2.1")),
        (made(stored_bytes_per_identity=0)[0], Client("ann", "192.0.2.1")),
        (made()[0], Client()),
    ):
        for _ in range(100):
            assert charge(known, client, 1 << 20) is None


def test_memory_of_quotas_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "REMEMBERED", 5)
    known, _ = made()
    for number in range(50):
        for channel in range(quotas.CHANNELS_MAX + 5):
            charge(known, Client(f"i{number}"), 1, str(channel))
    assert len(known._quotas) == 5
    assert all(len(quota.channels) == quotas.CHANNELS_MAX for quota in known._quotas.values())
