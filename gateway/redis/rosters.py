"""Rosters: who is in what, in Redis. A hash of entries and a hash of counts, in the slot of the roster's channel."""

from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from gateway.codec import encode_json
from gateway.directory import Entered, Member
from gateway.redis.estate import Notices, Place, field_of, read_value
from gateway.redis.names import channel_name, counts_key, roster_key
from gateway.redis.scripting import Call, Scripts
from gateway.redis.wire import command

__all__ = ["Rosters"]

ANOTHERS = -1  # enter.lua

_log = structlog.get_logger("snorky.redis")


class Rosters:
    """Enters, updates and lists. What is entered is indexed and checked by who calls it."""

    def __init__(self, scripts: Scripts, *, prefix: str, notices: Notices) -> None:
        self._scripts = scripts
        self._prefix = prefix
        self._notices = notices

    def entering(self, roster: str, member: Member, *, is_quiet: bool = False, is_listing: bool = False) -> Call:
        """Make the call that enters a member. is_quiet: nothing is told."""
        notices = [
            b"" if is_quiet else self._notices(roster, member, has_joined=True, is_identity=is_first) or b""
            for is_first in (True, False)
        ]
        arguments = [
            channel_name(self._prefix, roster),
            f"{member.owner} {member.entry}".encode(),
            member.identity.encode(),
            encode_json(member.data),
            *notices,
            b"1" if is_listing else b"0",
        ]
        return Call("enter", self._keys(roster), arguments)

    def entered(self, answer: Sequence[Any]) -> Entered:
        """Read what `entering` with is_listing gave."""
        return Entered(answer[0] == 1, _members(answer[1:]))

    async def update(self, roster: str, owner: str, place: Place, *, data: Any, notice: bytes | None) -> bool:
        """Replace an entry's data; False = there is no such entry. Raises BrokerUnavailable."""
        arguments = [
            channel_name(self._prefix, roster),
            field_of(owner, place),
            encode_json(data),
            notice or b"",
        ]
        (was_there,) = await self._scripts.run(Call("update", self._keys(roster), arguments))
        return bool(was_there == 1)

    async def members(self, roster: str) -> list[Member]:
        """List a roster. Raises BrokerUnavailable."""
        (answer,) = await self._scripts.run(command(b"HGETALL", roster_key(self._prefix, roster)))
        return _members(answer)

    async def version(self, roster: str) -> int:
        """Tell a number that grows with every change of a roster; 0 = it is empty. Raises BrokerUnavailable."""
        (answer,) = await self._scripts.run(command(b"HGET", counts_key(self._prefix, roster), b"v"))
        return int(answer or 0)

    def _keys(self, roster: str) -> list[bytes]:
        return [roster_key(self._prefix, roster), counts_key(self._prefix, roster)]


def _members(flat: Sequence[bytes]) -> list[Member]:
    members = []
    for field, value in zip(flat[::2], flat[1::2], strict=True):
        try:
            members.append(read_value(field, value))
        except (ValueError, msgspec.DecodeError) as error:
            _log.warning("entry of a roster is not readable", error=str(error))
    members.sort(key=_order)
    return members


def _order(member: Member) -> tuple[str, str, str, int, str]:
    owner = member.owner
    return member.identity, owner.node_id, owner.incarnation, owner.serial, member.entry
