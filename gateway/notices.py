"""Notices: what subscribers are told of rosters, as the services of this node say it."""

from collections.abc import Callable, Sequence
from typing import Any

import structlog

from gateway.codec import channel_of
from gateway.directory import Member
from gateway.ownership import Notice, encode_notice
from gateway.presence import Difference
from gateway.service import Service

__all__ = ["Notices"]

_log = structlog.get_logger("snorky.notices")


class Notices:
    """Asks services. find_service: by name; None = there is none such here."""

    def __init__(self, find_service: Callable[[str], Service | None]) -> None:
        self._find_service = find_service

    def are_wanted(self, service: str, channel: Any) -> bool:
        """True if a channel's subscribers hear who comes and goes."""
        found = self._find_service(service)
        return found is not None and found.has_roster_notices(channel)

    def of_change(
        self, service: str, channel: Any, member: Member, has_joined: bool, is_identity: bool
    ) -> Notice | None:
        """Make what is told of an entry that came or went; None = nothing."""
        found = self._find_service(service)
        if found is None:
            return None
        return found.roster_notice(channel, member, has_joined=has_joined, is_identity=is_identity)

    def of_differences(self, roster: str, differences: Sequence[Difference]) -> list[bytes]:
        """Make publications of what was missed, such as those that were."""
        service, _, name = roster.partition(":")
        found, channel = self._find_service(service), channel_of(name)
        if found is None:
            return []
        notices = []
        for difference in differences:
            try:
                notices.append(encode_notice(_notice(found, channel, difference)))
            except Exception:  # the foreign code of a service: the others are told all the same
                _log.exception("no notice", service=service)
        return [notice for notice in notices if notice is not None]


def _notice(service: Service, channel: Any, difference: Difference) -> Notice | None:
    member = difference.member
    if difference.kind == "updated":
        return service.roster_update(channel, member)
    has_joined = difference.kind == "joined"
    return service.roster_notice(channel, member, has_joined=has_joined, is_identity=difference.is_identity)
