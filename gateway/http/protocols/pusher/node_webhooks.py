"""NodeWebhooks: the webhooks of all apps on one node. A node without them has none of this, and no further connection.

A channel and its members belong to the pub/sub service of the app: subscribers by any protocol count, as they do for
the HTTP API. Numbers of subscribers count only the app's own clients, and only these receive them.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from snorky.gateway.config.pusher import PusherApp
from snorky.gateway.contracts.directory import Member
from snorky.gateway.contracts.webhooks import CountedClient, WebhookLog
from snorky.gateway.http.outbound.webhook_posts import webhook_posts
from snorky.gateway.http.protocols.pusher.names import is_channel
from snorky.gateway.http.protocols.pusher.webhook_sender import AppWebhooks, Pace
from snorky.gateway.http.protocols.pusher.webhooks import changes_wanted
from snorky.gateway.node import Node

__all__ = ["NodeWebhooks", "running_webhooks"]


class NodeWebhooks:
    """Implements `contracts.webhooks.WebhookReports`; watches the channels and members of a node."""

    def __init__(self, apps: Iterable[AppWebhooks]) -> None:
        self._apps = {each.app.id: each for each in apps}
        self._of_service: defaultdict[str, list[AppWebhooks]] = defaultdict(list)
        for each in self._apps.values():
            self._of_service[each.app.service].append(each)

    def wants(self, app_id: str, name: str) -> bool:
        """See WebhookReports."""
        found = self._apps.get(app_id)
        return found is not None and name in found.app.webhook_events

    def report(self, app_id: str, event: dict[str, Any]) -> None:
        """See WebhookReports."""
        if self.wants(app_id, event["name"]):
            self._apps[app_id].report(event)

    def count(self, app_id: str, channel: str, client: CountedClient, *, is_subscribed: bool) -> None:
        """See WebhookReports."""
        if (found := self._apps.get(app_id)) is not None:
            found.count(channel, client, is_subscribed=is_subscribed)

    def watch(self, node: Node) -> None:
        """Begin to watch a node, which has no clients yet."""
        if any(each.has_facts for each in self._apps.values()):
            node.channels.watch(self._on_channel)
            node.ownership.on_member = self._on_member
        node.metrics.webhook_events_waiting.set_function(
            lambda: sum(each.waiting for each in self._apps.values() if each.is_sender)
        )
        node.webhooks = self

    def start(self) -> None:
        """Begin to report and to send; returns at once."""
        for each in self._apps.values():
            each.start()

    async def stop(self) -> None:
        """Release what the node has claimed. Idempotent."""
        await asyncio.gather(*(each.stop() for each in self._apps.values()))

    def _on_channel(self, key: str, is_occupied: bool) -> None:
        service, _, channel = key.partition(":")
        for each in self._of_service.get(service, ()):
            if is_channel(channel):
                each.channel_changed(channel, is_occupied=is_occupied)

    def _on_member(self, roster: str, member: Member, is_there: bool) -> None:
        service, _, channel = roster.partition(":")
        for each in self._of_service.get(service, ()):
            if is_channel(channel):
                key = member.owner.connection_id, member.entry
                each.member_changed(channel, member.identity, key, is_there=is_there)


@asynccontextmanager
async def running_webhooks(
    node: Node,
    apps: Iterable[PusherApp],
    make_log: Callable[[str, Sequence[str]], WebhookLog],
    *,
    pace: Pace | None = None,
) -> AsyncIterator[None]:
    """Run the webhooks and counts of these apps on a started node during the context.

    make_log: of an app's id and changes. At the end the clients should be gone.
    """
    apps = [app if app.webhook_url else replace(app, webhook_events=()) for app in apps]
    async with webhook_posts() as post:
        webhooks = NodeWebhooks(
            AppWebhooks(app, make_log(app.id, changes_wanted(app)), post, node.metrics, pace=pace) for app in apps
        )
        webhooks.watch(node)
        webhooks.start()
        try:
            yield
        finally:
            await webhooks.stop()
