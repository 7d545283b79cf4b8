"""Notices: what this node tells subscribers by itself, in each service's form: presence events, gaps."""

from collections.abc import Callable, Sequence
from typing import Any

import structlog

from snorky.gateway.connection.connection import Connection
from snorky.gateway.contracts.directory import Member
from snorky.gateway.errors import CloseCode
from snorky.gateway.presence.ownership import Notice, encode_notice
from snorky.gateway.presence.roster_view import Difference, change_of
from snorky.gateway.protocol.codec import channel_of
from snorky.gateway.protocol.publication import write_change, write_version
from snorky.gateway.sdk.service import Service

__all__ = ["Notices"]

_log = structlog.get_logger("snorky.notices")


class Notices:
    """Makes notices by calling the services. find_service: by name; None = not on this node."""

    def __init__(self, find_service: Callable[[str], Service | None]) -> None:
        self._find_service = find_service

    def are_wanted(self, service: str, channel: Any) -> bool:
        """True if a channel's subscribers receive join and leave events."""
        found = self._find_service(service)
        return found is not None and found.sends_presence_events(channel)

    def of_change(
        self, service: str, channel: Any, member: Member, has_joined: bool, is_identity: bool
    ) -> Notice | None:
        """Make the notice of an entry that joined or left; None = send nothing."""
        found = self._find_service(service)
        if found is None:
            return None
        return found.roster_notice(channel, member, has_joined=has_joined, is_identity=is_identity)

    def end_at_gap(self, connection: Connection, key: str) -> None:
        """End a subscription of a protocol that bears no gaps. key: of the channel.

        The client subscribes again, and learns what it could not recover; it must receive nothing before. It cannot
        do that with a server-side subscription, so its connection ends.
        """
        name, _, channel = key.partition(":")
        service = self._find_service(name)
        try:
            if service is None or service.is_server_side(connection, channel_of(channel)):
                connection.close(CloseCode.RESYNC, "Messages are missing")
            else:
                service.end_subscription(connection, channel_of(channel), "gap", "Messages are missing")
        except Exception:  # a service's code: other clients must still be notified
            _log.exception("subscription not ended; closing the connection", key=key)
            connection.close(CloseCode.INTERNAL_ERROR, "Internal error")

    def of_differences(self, roster: str, differences: Sequence[Difference]) -> list[bytes]:
        """Make publications for missed notices, in the same form as the originals."""
        service, _, name = roster.partition(":")
        found, channel = self._find_service(service), channel_of(name)
        if found is None:
            return []
        notices = []
        for difference in differences:
            try:
                notices.append(_changed(encode_notice(_notice(found, channel, difference)), difference))
            except Exception:  # an error of a service: continue with the other notices
                _log.exception("no notice", service=service)
        return [notice for notice in notices if notice is not None]


def _changed(notice: bytes | None, difference: Difference) -> bytes | None:
    """Write the change that a notice reports in front of it. Its version is the census': the caller knows it."""
    if notice is None:
        return None
    return write_version(write_change(notice, change_of(difference)), 0, 0)


def _notice(service: Service, channel: Any, difference: Difference) -> Notice | None:
    member = difference.member
    if difference.kind == "updated":
        return service.roster_update(channel, member)
    has_joined = difference.kind == "joined"
    return service.roster_notice(channel, member, has_joined=has_joined, is_identity=difference.is_identity)
