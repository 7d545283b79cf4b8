"""AppWebhooks: events that are too old to be sent, and nodes that may not send."""

import json
from dataclasses import replace

from structlog.testing import capture_logs

from snorky.gateway.contracts.webhooks import Exchanged
from tests.unit.http.protocols.pusher.test_webhook_sender import APP, event, stage, until


async def test_only_events_older_than_five_minutes_are_dropped_and_none_of_them_is_posted() -> None:
    async with stage() as made:
        made.log.queue = [event(1, age_s=1_209_600.0), event(2, age_s=301.0), event(3, age_s=299.0)]
        with capture_logs() as logs:
            made.webhooks.start()
            await until(lambda: not made.log.queue)
        await until(lambda: made.count("events", "sent"))
        assert made.count("events", "expired") == 2 and made.count("events", "sent") == 1
        assert [json.loads(body)["events"][0]["channel"] for body in made.backend.bodies] == ["c3"]
        (line,) = [each for each in logs if each["event"] == "webhook events dropped"]
        assert line["count"] == 2


async def test_event_that_becomes_old_while_its_request_is_repeated_is_dropped() -> None:
    async with stage() as made:
        made.log.queue = [event(1, age_s=299.0), event(2)]

        def grow_old() -> None:
            made.backend.on_post = lambda: None
            made.log.queue = [event(1, age_s=301.0), event(2)]

        made.backend.on_post = grow_old
        made.backend.faults = ["status 500"]
        made.webhooks.start()
        await until(lambda: not made.log.queue)
        events = [[each["channel"] for each in json.loads(body)["events"]] for body in made.backend.bodies]
        assert events == [["c1", "c2"], ["c2"]] and made.count("events", "expired") == 1


async def test_exchanges_say_whether_this_node_may_send() -> None:
    for url in (APP.webhook_url, ""):
        async with stage(app=replace(APP, webhook_url=url, subscription_counts=True)) as made:
            made.webhooks.channel_changed("a", is_occupied=True)
            made.webhooks.start()
            await until(lambda log=made.log: log.exchanges)
            made.log.answers = [Exchanged("lost")]
            made.webhooks.channel_changed("b", is_occupied=True)
            await until(lambda log=made.log: log.resets)
            await made.log.some_rounds()
            assert made.log.may_send == {bool(url)}
