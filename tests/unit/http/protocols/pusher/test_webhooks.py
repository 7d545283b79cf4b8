"""Reports of a node for webhooks: the difference between its facts and those it has claimed; and the requests."""

import hashlib
import hmac
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.config.pusher import PusherApp
from snorky.gateway.contracts.webhooks import QueuedEvent
from snorky.gateway.http.protocols.pusher.webhooks import (
    BATCH_MAX,
    BATCH_MAX_BYTES,
    LocalFacts,
    Reports,
    batch_of,
    body_of,
    changes_wanted,
    fact_of_channel,
    fact_of_member,
    headers_of,
)

APP = PusherApp(id="shop", key="shop-key", secret="the secret", webhook_url="https://backend.example/hook")
NEWS, ANN = fact_of_channel("news"), fact_of_member("news", "ann smith")


def queued(event: bytes, number: int = 1) -> QueuedEvent:
    return QueuedEvent(f"{number}-0", event, number, 0.0)


def test_changes_are_taken_in_their_order_and_once() -> None:
    facts = LocalFacts()
    facts.set(NEWS, is_true=True)
    facts.set(ANN, is_true=True)
    facts.set(NEWS, is_true=True)
    changes = facts.take()
    assert changes == [b"+o news", b"+m news ann smith"]
    facts.confirm(changes)
    facts.set(ANN, is_true=False)
    facts.set(NEWS, is_true=False)
    assert facts.take(1) == [b"-m news ann smith"] and facts.has_changes
    assert facts.take() == [b"-o news"] and not facts.has_changes


def test_fact_that_is_as_it_was_makes_no_change() -> None:
    facts = LocalFacts()
    facts.set(NEWS, is_true=True)
    facts.set(NEWS, is_true=False)
    assert facts.take() == []


def test_after_a_fence_all_that_is_true_is_claimed_again_channels_first() -> None:
    facts = LocalFacts()
    for fact in (ANN, NEWS, "o other"):
        facts.set(fact, is_true=True)
    facts.confirm(facts.take())
    facts.set("o other", is_true=False)
    facts.renew(())
    assert facts.take() == [b"+o news", b"+m news ann smith"]


def test_after_a_loss_what_has_ended_meanwhile_is_released() -> None:
    facts = LocalFacts()
    facts.set(NEWS, is_true=True)
    facts.confirm(facts.take())
    facts.set(NEWS, is_true=False)
    facts.set("o sport", is_true=True)
    facts.renew(["o news", "o stray"])
    assert sorted(facts.take()) == [b"+o sport", b"-o news", b"-o stray"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.sampled_from(["take", "confirm", "renew", ""]))))
def test_redis_knows_what_is_true_once_all_is_confirmed(steps: list[tuple[str, bool, str]]) -> None:
    facts, true, known = LocalFacts(), set(), set()
    taken: list[bytes] = []

    def confirm() -> None:
        for change in taken:
            (known.add if change[:1] == b"+" else known.discard)(change[1:].decode())
        facts.confirm(taken)
        taken.clear()

    for fact, is_true, then in steps:
        facts.set(fact, is_true=is_true)
        (true.add if is_true else true.discard)(fact)
        if then == "renew":  # fenced, while an exchange may be in progress
            known.clear()
            taken.clear()
            facts.renew(())
        elif then == "take" and not taken:
            taken += facts.take()
        elif then == "confirm":
            confirm()
    confirm()
    taken += facts.take()
    confirm()
    assert known == true


def test_reports_are_bounded_in_number_and_bytes() -> None:
    reports = Reports(most=2, max_bytes=100)
    assert reports.add({"name": "a"}) and reports.add({"name": "b"}) and not reports.add({"name": "c"})
    reports.remove(1)
    assert not reports.add({"name": "x" * 90}) and reports.add({"name": "d"})
    assert reports.first(10) == [b'{"name":"b"}', b'{"name":"d"}'] and len(reports) == 2


def test_reports_of_one_exchange_are_bounded_but_one_always_goes() -> None:
    reports = Reports()
    for _ in range(3):
        reports.add({"data": "x" * (BATCH_MAX_BYTES // 2)})
    assert len(reports.first(500)) == 1
    assert len(reports.first(0)) == 0


def test_requests_are_bounded_in_number_and_bytes_but_one_event_always_goes() -> None:
    assert len(batch_of([queued(b"+o news")] * 500)) == BATCH_MAX
    large = queued(b"{" + b"x" * BATCH_MAX_BYTES)
    assert batch_of([large, large]) == [large]
    assert batch_of([queued(b"+o a"), large]) == [queued(b"+o a")]
    assert batch_of([]) == []


def test_request_has_the_events_with_the_names_and_fields_of_the_protocol() -> None:
    report: dict[str, Any] = {"name": "client_event", "channel": "private-a", "event": "client-x", "data": "é"}
    events = [
        b"+o news",
        b"-o news",
        b"+m presence-a ann smith",
        b"-m presence-a \xc3\xa9",
        json.dumps(report).encode(),
    ]
    body = body_of([queued(event, number) for number, event in enumerate(events, start=1)], 5)
    assert json.loads(body) == {
        "time_ms": 5,
        "events": [
            {"name": "channel_occupied", "channel": "news"},
            {"name": "channel_vacated", "channel": "news"},
            {"name": "member_added", "channel": "presence-a", "user_id": "ann smith"},
            {"name": "member_removed", "channel": "presence-a", "user_id": "é"},
            report,
        ],
    }
    assert headers_of(APP, body) == {
        "Content-Type": "application/json",
        "X-Pusher-Key": "shop-key",
        "X-Pusher-Signature": hmac.new(b"the secret", body, hashlib.sha256).hexdigest(),
    }


def test_only_changes_of_the_events_that_an_app_wants_are_wanted() -> None:
    assert changes_wanted(APP) == ["+o", "-o", "+m", "-m"]
    app = PusherApp(id="a", key="k", secret="s", webhook_events=("member_removed", "cache_miss"))
    assert changes_wanted(app) == ["-m"]


def test_user_whose_id_has_a_blank_keeps_its_channel() -> None:
    batch = [queued(b"+o #server-to-user-Jane Doe"), queued(b"+m presence-room Jane Doe", 2)]
    events = json.loads(body_of(batch, 7))["events"]
    assert events == [
        {"name": "channel_occupied", "channel": "#server-to-user-Jane Doe"},
        {"name": "member_added", "channel": "presence-room", "user_id": "Jane Doe"},
    ]


def test_event_of_a_newer_node_does_not_stop_what_follows() -> None:
    batch = [queued(b"?x of a newer node"), queued(b"\xff\xfe", 2), queued(b"+o news", 3)]
    assert json.loads(body_of(batch, 7))["events"] == [{"name": "channel_occupied", "channel": "news"}]


def test_facts_that_are_claimed_already_are_not_compared_again() -> None:
    facts = LocalFacts()
    held = [fact_of_channel(str(number)) for number in range(1_000)]
    for fact in held:
        facts.set(fact, is_true=True)
    while changes := facts.take():
        facts.confirm(changes)
    facts.renew(held)
    assert not facts.has_changes
