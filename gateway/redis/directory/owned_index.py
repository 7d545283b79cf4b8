"""OwnedIndex: what an owner (NODE:INCARNATION, see `lease`) has in Redis, by its index, and how it is released.

Rules:
- An element of the index is a JSON list: ["r", roster, serial, entry] or ["n", names, name, serial].
- The element is written before the state, and removed after it. They are in different slots, so either step may fail
  alone: an element without state is harmless; state without an element would never be removed.
- Releasing is a compare-and-delete by owner. If it runs twice, late, or in two reapers, only the run that finds the
  state deletes it and publishes `left`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec
import structlog

from snorky.gateway.contracts.directory import Member, Owner
from snorky.gateway.redis.connection.pipeline import all_ended
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.keys import counts_key, names_key, node_channel_name, owned_key, roster_key

__all__ = ["OwnedIndex", "OwnedItem", "OwnedName", "RosterEntry", "field_of", "read_element", "read_value"]

BATCH = 200  # elements per round trip: the script takes 2 ms in Redis
AT_ONCE = (
    2  # concurrent batches: Redis executes one while we build the next; building one blocks the event loop for 10 ms
)

_log = structlog.get_logger("snorky.redis")


class Notices(Protocol):
    """Makes the notice that is published for a member; see LocalState.notice."""

    def __call__(self, roster: str, member: Member, *, has_joined: bool, is_identity: bool) -> bytes | None: ...


class _Element(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    def element(self) -> bytes:
        """Encode it as an element of the index."""
        return msgspec.json.encode(self)


class RosterEntry(_Element, tag="r", frozen=True):
    """An entry of a connection in a roster."""

    roster: str
    serial: int
    entry: str


class OwnedName(_Element, tag="n", frozen=True):
    """A unique name that a connection owns."""

    names: str
    name: str
    serial: int


OwnedItem = RosterEntry | OwnedName


def field_of(owner: str, place: RosterEntry) -> bytes:
    """Make the field name of an entry in its roster's hash. owner: NODE:INCARNATION."""
    return f"{owner}:{place.serial} {place.entry}".encode()


def read_value(field: bytes, value: bytes) -> Member:
    """Decode a field of a roster's hash and its value. Raises ValueError: not in our format."""
    owner, _, entry = field.decode().partition(" ")
    length, _, rest = value.partition(b":")
    identity = rest[: int(length)].decode()
    return Member(identity, Owner.parse(owner), entry, msgspec.json.decode(rest[int(length) :]))


class OwnedIndex:
    """Releases what owners have. notices: makes the `left` notices."""

    def __init__(self, scripts: Scripts, *, prefix: str, notices: Notices) -> None:
        self._scripts = scripts
        self._prefix = prefix
        self._notices = notices

    async def sweep(self, owner: str) -> int:
        """Release everything that a dead owner has; returns the number of holdings. Raises BrokerUnavailable.

        Elements without state stay in the index until the last sweep: a late write may still create their state. An
        element is removed after its state, and put back if the state is there again: Redis may have come back with an
        older copy of its data in between, and the restored state may have been indexed already.
        """
        key, size = owned_key(self._prefix, owner), b"%d" % (AT_ONCE * BATCH)
        count, cursor = 0, b"0"
        while True:
            ((cursor, elements),) = await self._scripts.run(command(b"SSCAN", key, cursor, b"COUNT", size))
            owned = {element: holding for element in elements if (holding := read_element(element)) is not None}
            found = await self.give_back(owner, list(owned.values()))
            gone = [element for element, was_there in zip(owned, found, strict=True) if was_there]
            if gone:
                await self._scripts.run(command(b"SREM", key, *gone))
                removed = [owned[element] for element in gone]
                if back := [each.element() for each in await self._present(owner, removed)]:
                    await self._scripts.run(command(b"SADD", key, *back))
            count += len(gone)
            if cursor == b"0":
                return count

    async def give_back(self, owner: str, holdings: Sequence[OwnedItem], *, is_quiet: bool = False) -> list[bool]:
        """Delete the state of these holdings and publish `left`. Returns True for each that existed.

        is_quiet: publish nothing, only increase the rosters' versions: for entries whose `left` was published before.
        Raises BrokerUnavailable: some may have been deleted.
        """
        batches = [holdings[start : start + BATCH] for start in range(0, len(holdings), BATCH)]
        found: list[bool] = []
        for start in range(0, len(batches), AT_ONCE):
            for flags in await all_ended(
                self._give_back(owner, each, is_quiet) for each in batches[start : start + AT_ONCE]
            ):
                found += flags
        return found

    def forget(self, owner: str, holdings: Iterable[OwnedItem]) -> None:
        """Remove holdings from the index, after their state is deleted; never waits."""
        elements = [holding.element() for holding in holdings]
        if elements:
            self._scripts.forget(command(b"SREM", owned_key(self._prefix, owner), *elements))

    async def _give_back(self, owner: str, holdings: Sequence[OwnedItem], is_quiet: bool) -> list[bool]:
        rosters: defaultdict[str, list[int]] = defaultdict(list)
        names: defaultdict[str, list[int]] = defaultdict(list)
        for at, holding in enumerate(holdings):
            if isinstance(holding, RosterEntry):
                rosters[holding.roster].append(at)
            else:
                names[holding.names].append(at)
        fields = {at: field_of(owner, place) for at, place in enumerate(holdings) if isinstance(place, RosterEntry)}
        reads = [
            command(b"HMGET", roster_key(self._prefix, key), *(fields[at] for at in places))
            for key, places in rosters.items()
        ]
        values = await self._scripts.run(*reads, in_order=False) if reads else []
        calls, order = [], []
        for (roster, places), answer in zip(rosters.items(), values, strict=True):
            arguments = [b"" if is_quiet else node_channel_name(self._prefix, roster)]
            for at, value in zip(places, answer, strict=True):
                arguments += [fields[at], *self._left(roster, fields[at], value)]
            calls.append(Call("leave", [roster_key(self._prefix, roster), counts_key(self._prefix, roster)], arguments))
            order += places
        for key, places in names.items():
            held = [(holdings[at], at) for at in places]
            pairs = [(each.name, f"{owner}:{each.serial}") for each, _ in held if isinstance(each, OwnedName)]
            calls.append(Call("release", [names_key(self._prefix, key)], [w.encode() for pair in pairs for w in pair]))
            order += places
        found = [False] * len(holdings)
        answers = await self._scripts.run(*calls, in_order=False) if calls else []
        for at, was_there in zip(order, (flag for answer in answers for flag in answer), strict=True):
            found[at] = was_there == 1
        return found

    async def _present(self, owner: str, holdings: Sequence[OwnedItem]) -> list[OwnedItem]:
        """Return the holdings whose state is in Redis. Raises BrokerUnavailable."""
        wanted: defaultdict[bytes, dict[bytes, OwnedItem]] = defaultdict(dict)
        for each in holdings:
            if isinstance(each, RosterEntry):
                wanted[roster_key(self._prefix, each.roster)][field_of(owner, each)] = each
            else:
                wanted[names_key(self._prefix, each.names)][each.name.encode()] = each
        reads = [command(b"HMGET", key, *fields) for key, fields in wanted.items()]
        answers = await self._scripts.run(*reads, in_order=False)
        return [
            each
            for fields, values in zip(wanted.values(), answers, strict=True)
            for each, value in zip(fields.values(), values, strict=True)
            if value is not None and (isinstance(each, RosterEntry) or _is_owned(value, f"{owner}:{each.serial}"))
        ]

    def _left(self, roster: str, field: bytes, value: bytes | None) -> tuple[bytes, bytes]:
        """Make two `left` notices: if it is the identity's last entry, and if not. Empty if there is no entry now."""
        if value is None:
            return b"", b""
        try:
            member = read_value(field, value)
            return tuple(  # type: ignore[return-value]  # two of them
                self._notices(roster, member, has_joined=False, is_identity=is_last) or b"" for is_last in (True, False)
            )
        except Exception as error:  # raised by a service, or data in another format: the entry is removed anyway
            _log.exception("no notice made for a member that left", error=repr(error))
            return b"", b""


def _is_owned(value: bytes, owner: str) -> bool:
    """Compare the value of a name as `release.lua` does."""
    return value.partition(b" ")[0] == owner.encode()


_decode_element = msgspec.json.Decoder(OwnedItem).decode


def read_element(element: bytes) -> OwnedItem | None:
    """Decode an element of an index; None = not in our format."""
    try:
        holding: OwnedItem = _decode_element(element)
    except (msgspec.MsgspecError, ValueError):
        return None
    return holding
