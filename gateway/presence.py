"""Presence: who is in one roster, as the subscribers on this node have been told. Pure, no await.

Rules:
- It begins with a census: who is there then was told, for every subscriber asks for a list by itself. From then on each
  notice that is heard changes it.
- Notices can be lost: they are published, and not kept. Each names the version of the one before, so one that does not
  follow shows it, and else the roster's version does (`agrees`). Then a census is wanted, and `settle` gives what is to
  be told now. What is heard while it is taken counts if it is later than the census.
- A notice that was in the census, and comes behind it, must not be told twice: `hear` says so.
- Not every entry is told of (of an identity's second connection nobody hears); so what leaves as its identity's last
  entry takes all of that identity along. Of those it is `unsaid` that they have gone.
- An entry is known by its connection and name, whatever incarnation its node has.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from gateway.directory import Census, Member, Owner
from gateway.publication import Change

__all__ = ["Difference", "Presence"]

LATE_S: Final = 5.0  # a notice on its way for longer is told, even twice: the clock of Redis may have been set back

_Place = tuple[str, str]  # connection, entry
_Places = dict[str, tuple[_Place, ...]]  # by identity, nearly always one


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that subscribers were not told. is_identity: it is its identity's first or last entry."""

    kind: Literal["joined", "left", "updated"]
    member: Member
    is_identity: bool = False


class Presence:
    """One roster. version: of the last notice that is known to be told; None before the first census.

    has_hole: a notice was heard that does not follow. is_doubtful: somebody who was told to be here was missing in the
    last census, and nobody was told of that. unsaid: differences that came to light by what was heard; whoever tells
    them takes them away.
    """

    __slots__ = (
        "_data",
        "_heard",
        "_identities",
        "_late_until_s",
        "_settled_version",
        "_told",
        "has_hole",
        "is_doubtful",
        "unsaid",
        "version",
    )

    def __init__(self) -> None:
        self.version: int | None = None
        self.has_hole = False
        self.is_doubtful = False
        self.unsaid: list[Difference] = []
        self._told: _Places = {}
        self._data: dict[_Place, Any] = {}  # of those that carry some
        self._identities: dict[str, _Place] = {}  # that were told to have come, each with an entry that it had
        self._heard: list[Change] | None = None  # while a census is taken
        self._settled_version = 0  # the changes up to it have been told
        self._late_until_s = 0.0

    def hear(self, change: Change, now_s: float) -> bool:
        """Take a change whose notice came. False: it has been told already, as a difference."""
        if change.version <= self._settled_version and now_s < self._late_until_s:
            return False
        self._settled_version = 0  # notices come in the order of versions: no earlier one is on its way any more
        if self._heard is not None:
            self._heard.append(change)
        if self.version is not None:
            self._follow(change, self.version)
            self._believe(change)
        return True

    def agrees(self, version: int) -> bool:
        """True if nothing was missed of a roster that has this version now; 0: nothing was told of who is in it."""
        return not self.has_hole and (version == self.version if version else not self._told)

    def begin_census(self) -> None:
        """Know that the roster is being read from now on."""
        self._heard = []

    def settle(self, census: Census, now_s: float, *, with_departures: bool) -> list[Difference]:
        """Take the census; returns what is to be told. Not with_departures: who is missing stays told, and doubtful."""
        heard, self._heard = self._heard or [], None
        now: _Places = {}
        for member in census.members:
            _add(now, member.identity, _place(member))
        data = {_place(member): member.data for member in census.members if member.data is not None}
        is_first, self.version, self.has_hole = self.version is None, census.version, False
        for change in heard:
            if change.version > census.version:
                self._follow(change, self.version)
                _apply(now, data, change)
        if is_first:
            self._told, self._data, self._identities = (
                now,
                data,
                {identity: places[0] for identity, places in now.items()},
            )
            return []
        self._settled_version, self._late_until_s = census.version, now_s + LATE_S
        gone = list(self._departures(now))
        come = list(self._arrivals(census, now))
        self.is_doubtful = bool(gone) and not with_departures
        if self.is_doubtful:
            for difference in gone:
                _add(now, difference.member.identity, _place(difference.member))
                data[_place(difference.member)] = difference.member.data
        self._told, self._data = now, data
        differences = come if self.is_doubtful else gone + come
        for difference in differences:
            if difference.is_identity and difference.kind == "left":
                del self._identities[difference.member.identity]
            elif difference.is_identity:
                self._identities[difference.member.identity] = _place(difference.member)
        return differences

    def _follow(self, change: Change, version: int) -> None:
        """See whether a change follows what is known."""
        was_empty = change.previous == 0 and not self._told
        if change.previous == version or was_empty:
            self.version = change.version
        elif change.version > version:  # else it was on its way when the census was taken
            self.has_hole = True

    def _believe(self, change: Change) -> None:
        """Take what subscribers are told now."""
        place = change.connection_id, change.entry
        if change.is_identity and change.kind == "+":
            self._identities[change.identity] = place
        elif change.is_identity:
            self._identities.pop(change.identity, None)
            others = [other for other in self._told.get(change.identity, ()) if other != place]
            self.unsaid += [Difference("left", self._gone(change.identity, other)) for other in others]
        _apply(self._told, self._data, change)

    def _departures(self, now: _Places) -> Iterator[Difference]:
        """Find who was told to be here and is not. With the last entry of an identity that has gone, that goes too."""
        for identity in self._told | self._identities:
            here = now.get(identity, ())
            gone = [place for place in self._told.get(identity, ()) if place not in here]
            has_left = not here and identity in self._identities
            if has_left and not gone:
                gone = [self._identities[identity]]  # its other entries were told to go one by one
            for place in gone:
                yield Difference("left", self._gone(identity, place), has_left and place == gone[-1])

    def _arrivals(self, census: Census, now: _Places) -> Iterator[Difference]:
        """Find who is here and was not told to be, and whose data is not what was told."""
        identities = set(self._identities)
        for member in census.members:
            identity, place = member.identity, _place(member)
            if place not in now.get(identity, ()):
                continue  # gone again meanwhile, as was heard
            if identity not in identities or place not in self._told.get(identity, ()):
                yield Difference("joined", member, identity not in identities)
                identities.add(identity)
            elif member.data != self._data.get(place):
                yield Difference("updated", member)

    def _gone(self, identity: str, place: _Place) -> Member:
        node_id, _, serial = place[0].rpartition(".")
        return Member(identity, Owner(node_id, "", int(serial)), place[1], self._data.get(place))


def _place(member: Member) -> _Place:
    return member.owner.connection_id, member.entry


def _add(places: _Places, identity: str, place: _Place) -> None:
    known = places.get(identity, ())
    if place not in known:
        places[identity] = (*known, place)


def _apply(places: _Places, data: dict[_Place, Any], change: Change) -> None:
    place = (change.connection_id, change.entry)
    known = places.get(change.identity, ())
    if change.kind == "+":
        _add(places, change.identity, place)
    elif change.kind == "-":
        rest = () if change.is_identity else tuple(each for each in known if each != place)
        places.pop(change.identity, None)
        if rest:
            places[change.identity] = rest
        for gone in (place, *known) if change.is_identity else (place,):
            data.pop(gone, None)
    if change.kind != "-" and (change.data is not None or place in data):
        data[place] = change.data
