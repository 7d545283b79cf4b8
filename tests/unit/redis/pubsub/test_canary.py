"""Canary: detection of undelivered publications, on a manual clock."""

import asyncio
from collections.abc import Callable
from typing import Any

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.pubsub.canary import TICK_S, Canary
from snorky.gateway.redis.pubsub.publisher import PublishRefused


class World:
    """Time, publishes, redials."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.sent: list[bytes] = []
        self.futures: list[asyncio.Future[int]] = []
        self.redials: list[str] = []
        self.metrics = Metrics()
        self.canary = Canary(
            publish=self._publish,
            redial=self.redials.append,
            metrics=self.metrics,
            silence_s=2.0,
            deadline_s=2.0,
            clock=lambda: self.now_s,
        )

    def _publish(self, payload: bytes) -> "asyncio.Future[int]":
        self.sent.append(payload)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.futures.append(future)
        return future

    def value(self, name: str) -> Any:
        return self.metrics.registry.get_sample_value(name)

    def run(self, seconds: float, each: Callable[[], object] = lambda: None) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            each()
            self.canary.tick()

    def echo(self) -> None:
        self.canary.on_canaries(self.sent[-1:])

    def prove(self) -> None:
        self.canary.on_whole()
        self.echo()
        assert not self.canary.is_redis_unverified


async def test_not_receiving_until_the_first_canary_came_back() -> None:
    world = World()
    assert world.canary.is_redis_unverified and world.value("snorky_redis_delivery_unverified") == 1
    world.run(10)
    assert world.sent == [] and world.redials == []  # not connected: the link handles that
    world.canary.on_whole()
    assert world.canary.is_redis_unverified and len(world.sent) == 1
    world.echo()
    assert not world.canary.is_redis_unverified and world.value("snorky_redis_delivery_unverified") == 0
    assert abs(world.value("snorky_redis_delivery_unverified_seconds_total") - 10) < 0.2


async def test_a_canary_is_sent_after_two_seconds_of_silence_and_not_before() -> None:
    world = World()
    world.prove()
    world.run(1.8)
    assert len(world.sent) == 1
    world.run(0.4)
    assert len(world.sent) == 2


async def test_no_canary_is_sent_while_publications_arrive() -> None:
    world = World()
    world.prove()
    world.run(60, each=world.canary.on_heard)
    assert len(world.sent) == 1 and not world.canary.is_redis_unverified


async def test_no_canary_for_two_seconds_more_means_unverified_and_redials() -> None:
    world = World()
    world.prove()
    world.run(3.8)
    assert not world.canary.is_redis_unverified
    world.run(0.5)
    assert world.canary.is_redis_unverified and len(world.redials) == 1


async def test_after_a_loss_only_a_canary_sent_since_counts() -> None:
    world = World()
    world.prove()
    world.run(2.1)
    world.canary.on_lost()
    assert world.canary.is_redis_unverified
    world.canary.on_whole()
    world.canary.on_canaries([world.sent[-2], b"", b"999", b"-1", b"abc", b"9" * 30])
    assert world.canary.is_redis_unverified
    world.echo()
    assert not world.canary.is_redis_unverified


async def test_traffic_without_our_canary_is_no_proof_but_no_reason_to_redial() -> None:
    world = World()
    world.canary.on_whole()
    world.run(20, each=world.canary.on_heard)
    assert world.canary.is_redis_unverified and world.redials == []
    assert len(world.sent) > 5  # it keeps asking
    world.canary.on_canaries(world.sent[:1])  # however late
    assert not world.canary.is_redis_unverified


async def test_time_while_paused_is_not_silence() -> None:
    world = World()
    world.prove()
    world.run(2.1)  # the canary is in flight
    world.canary.pause()
    world.run(60)
    assert not world.canary.is_redis_unverified and world.redials == []
    world.canary.resume()
    world.run(1.5)
    assert not world.canary.is_redis_unverified
    world.run(1.0)
    assert world.canary.is_redis_unverified  # and silence after it counts again


async def test_time_of_a_stalled_loop_is_not_silence() -> None:
    world = World()
    world.prove()
    world.run(3.9)
    world.now_s += 20.0
    world.canary.tick()
    assert not world.canary.is_redis_unverified
    world.echo()  # it was there all the time, unread
    world.run(1.0)
    assert not world.canary.is_redis_unverified and world.redials == []


async def test_many_short_standstills_do_not_hide_a_loss() -> None:
    world = World()
    world.prove()
    for _ in range(40):
        world.run(0.4)
        world.now_s += 0.3
        world.canary.tick()
    assert world.canary.is_redis_unverified and world.redials


async def test_a_canary_whose_connection_failed_is_sent_again_under_the_same_deadline() -> None:
    world = World()
    world.prove()
    world.run(2.1)
    world.futures[-1].set_exception(BrokerUnavailable("lost"))
    await asyncio.sleep(0)
    world.run(TICK_S)
    assert world.sent[-1] == world.sent[-2]
    world.run(2.0)
    assert world.canary.is_redis_unverified and world.redials


async def test_a_canary_that_redis_refuses_counts_as_not_receiving_without_a_redial() -> None:
    world = World()
    world.prove()
    for _ in range(200):
        world.run(TICK_S)
        for future in world.futures:
            if not future.done():
                future.set_exception(PublishRefused("NOPERM"))
        await asyncio.sleep(0)
    assert world.canary.is_redis_unverified and world.redials == []
    assert 5 < len(world.sent) < 20  # keeps asking, slowly
