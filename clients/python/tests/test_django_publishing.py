"""publish_on_commit: messages are published after a commit, and not after a rollback."""

import datetime
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.test import override_settings
from django_project import Task, make_tables
from scripted_redis import answer_each, array, commands, error, redis_url, text
from scripted_server import ScriptedServer

from snorky.client.django import publications_lost, publish_on_commit
from snorky.client.django.publishing import configured_publisher


def answer(words: Sequence[bytes]) -> bytes:
    """Answer as the function does for channels without a history; refuse a call with the payload "bad"."""
    payloads = words[4::2]
    if any(b"bad" in payload for payload in payloads):
        return error("ERR no")
    return text("") if len(payloads) == 1 else array(*[text("")] * len(payloads))


@pytest.fixture
def redis() -> Iterator[ScriptedServer]:
    make_tables()
    taking = answer_each(answer)
    with ScriptedServer([taking], [taking]) as server, override_settings(SNORKY_REDIS_URL=redis_url(server)):
        yield server
        publisher = configured_publisher()
        assert publisher is not None
        publisher.close()


def messages(redis: ScriptedServer) -> list[str]:
    return [payload for command in commands(redis) for payload in command[4::2]]


def test_messages_go_out_together_and_in_order_when_the_transaction_is_committed(redis: ScriptedServer) -> None:
    with transaction.atomic():
        publish_on_commit("orders", {"at": datetime.date(2020, 1, 2)})
        publish_on_commit(["orders", 1], 2, key="k2", service="other")
        assert commands(redis) == []
    first, second = commands(redis)
    assert first[3:5] == ["snorky:{pubsub:orders}", '{"at":"2020-01-02"}']
    assert second[3:] == ['snorky:{other:~["orders",1]}', "2", "k2"]


def test_without_a_transaction_it_goes_out_at_once(redis: ScriptedServer) -> None:
    publish_on_commit("orders", 1)
    assert messages(redis) == ["1"]


def test_what_is_rolled_back_is_not_published(redis: ScriptedServer) -> None:
    with transaction.atomic():
        publish_on_commit("orders", 1)
        try:
            with transaction.atomic():
                publish_on_commit("orders", 2)
                raise RuntimeError
        except RuntimeError:
            pass
        publish_on_commit("orders", 3)
    assert messages(redis) == ["1", "3"]


def test_what_a_node_would_not_take_fails_before_the_commit(redis: ScriptedServer) -> None:
    with pytest.raises((ValueError, TypeError)), transaction.atomic():
        publish_on_commit("orders", {"x": float("nan")})
    with pytest.raises(ValueError), transaction.atomic():
        publish_on_commit("x" * 300, 1)
    assert commands(redis) == []


def test_what_redis_refuses_is_told_by_a_signal_with_its_key_and_the_request_goes_on(redis: ScriptedServer) -> None:
    lost: list[Any] = []

    def hear(publications: Any, error: Exception, **_: Any) -> None:
        lost.append((publications, error))

    publications_lost.connect(hear)
    try:
        with transaction.atomic():
            Task.objects.all().delete()
            publish_on_commit("orders", "good")
            publish_on_commit("orders", "bad", key="k1")
    finally:
        publications_lost.disconnect(hear)
    ((publications, _error),) = lost
    assert [(each.message, each.key) for each in publications] == [("bad", "k1")]


def test_setting_must_be_there_and_none_means_nothing_is_published() -> None:
    with pytest.raises(ImproperlyConfigured, match="SNORKY_REDIS_URL"):
        publish_on_commit("orders", 1)
    with override_settings(SNORKY_REDIS_URL=None):
        publish_on_commit("orders", 1)
        with pytest.raises(ValueError):
            publish_on_commit("orders", "\ud800")
    with override_settings(SNORKY_REDIS_URL="http://h/"), pytest.raises(ImproperlyConfigured):
        publish_on_commit("orders", 1)
