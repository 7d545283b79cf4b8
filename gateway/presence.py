"""Presence: who is in one roster, as the subscribers on this node have been told. Pure, no await.

Rules:
- It begins with a census: who is there then was told, for every subscriber asks for a list by itself. From then on each
  notice that is heard changes it.
- Notices can be lost: they are published, and not kept. Each names the version of the one before, so one that does not
  follow shows it, and else the roster's version does (`agrees`). Then a census is wanted, and `settle` gives what is to
  be told now. What is heard while it is taken counts if it is later than the census.
- Who is missing in a census may only seem so: Redis may have lost its state, and nodes enter their members again within
  10 s. He is in doubt, and has left if a census `GRACE_S` later misses him still, with no interruption in between.
- After a restart Redis may have an older copy, from which nodes remove stale members within 10 s. So `joined` is sent
  for a new member in the first census of another run only if a census `GRACE_S` later has the member too.
- A notice that was in the census, and comes behind it, must not be told twice: `hear` says so. Nor must one that an
  entry came which was told to be here all along: its leaving was missed, because others took its node for dead. Who was
  told a list in between may lack it, so `known` says up to which version of a list it is known.
- Not every entry is told of (of an identity's second connection nobody hears); so what leaves as its identity's last
  entry takes all of that identity along. Of those it is `unsaid` that they have gone.
- An entry is known by its connection and name, whatever incarnation its node has.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from gateway.directory import Census, Member, Owner
from gateway.publication import Change

__all__ = ["GRACE_S", "Difference", "Presence"]

GRACE_S: Final = 12.0
LATE_S: Final = 5.0  # a notice on its way for longer is told, even twice: the clock of Redis may have been set back

_Place = tuple[str, str]  # connection, entry


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that subscribers were not told. is_identity: it is its identity's first or last entry."""

    kind: Literal["joined", "left", "updated"]
    member: Member
    is_identity: bool = False


class _Roster:
    """Entries: whose they are, and what they carry. counts: of entries, by identity."""

    __slots__ = ("counts", "data", "identities")

    def __init__(self) -> None:
        self.identities: dict[_Place, str] = {}
        self.counts: dict[str, int] = {}
        self.data: dict[_Place, Any] = {}  # of those that carry some

    def put(self, place: _Place, identity: str, data: Any) -> None:
        if self.identities.get(place) != identity:
            self.take(place)
            self.identities[place] = identity
            self.counts[identity] = self.counts.get(identity, 0) + 1
        if data is not None or place in self.data:
            self.data[place] = data

    def take(self, place: _Place) -> None:
        identity = self.identities.pop(place, None)
        self.data.pop(place, None)
        if identity is not None:
            self.counts[identity] -= 1
            if not self.counts[identity]:
                del self.counts[identity]

    def apply(self, change: Change) -> list[Member]:
        """Take a change; returns the other entries that went with their identity's last one."""
        place = (change.connection_id, change.entry)
        if change.kind == "+":
            self.put(place, change.identity, change.data)
        elif self.identities.get(place) == change.identity:
            if change.kind == "-":
                self.take(place)
            else:
                self.put(place, change.identity, change.data)
        if change.kind != "-" or not change.is_identity or change.identity not in self.counts:
            return []
        others = [other for other, identity in self.identities.items() if identity == change.identity]
        members = [self.member(other, change.identity) for other in others]
        for other in others:
            self.take(other)
        return members

    def member(self, place: _Place, identity: str) -> Member:
        node_id, _, serial = place[0].rpartition(".")
        return Member(identity, Owner(node_id, "", int(serial)), place[1], self.data.get(place))


class Presence:
    """One roster. version: of the last notice that is known to be told; None before the first census.

    has_hole: something was missed, for a notice was heard that does not follow. known: of the change heard last, 0 =
    nobody knows it from a list. unsaid: differences that came to light
    by what was heard; whoever tells them takes them away. grace_s: how long somebody is in doubt.
    """

    __slots__ = (
        "_doubtful",
        "_grace_s",
        "_has_strangers",
        "_heard",
        "_identities",
        "_is_late",
        "_last_seen",
        "_late_until_s",
        "_older_until_s",
        "_run",
        "_settled_version",
        "_told",
        "has_hole",
        "known",
        "unsaid",
        "version",
    )

    def __init__(self, *, grace_s: float = GRACE_S) -> None:
        self.version: int | None = None
        self.has_hole = False
        self.known = 0
        self.unsaid: list[Difference] = []
        self._grace_s = grace_s
        self._told = _Roster()
        self._identities: dict[str, _Place] = {}  # that were told to have come, each with an entry that it had
        self._doubtful: dict[_Place, float] = {}  # entries that are told and missing, since when
        self._last_seen: dict[_Place, int] = {}  # and up to which version they were there for sure
        self._heard: list[Change] | None = None  # while a census is taken
        self._is_late = False  # notices are coming that the census had
        self._settled_version = 0  # the changes up to it have been told
        self._late_until_s = 0.0
        self._run = ""
        self._older_until_s = 0.0  # what is in Redis may be of an older copy
        self._has_strangers = False  # and has what is not told for that reason

    @property
    def is_doubtful(self) -> bool:
        """True while somebody is in doubt: then a census is wanted when the grace is over."""
        return bool(self._doubtful) or self._has_strangers

    def hear(self, change: Change, now_s: float) -> bool:
        """Take a change whose notice came. False: it has been told already, as a difference."""
        self.known = self._known(change)
        if change.version > self._settled_version:
            self._settled_version = 0  # they come in the order of versions: none that was told comes any more
        elif now_s < self._late_until_s:
            if change.kind == "-":
                self._confirm((change.connection_id, change.entry))
            return False
        if self._heard is not None:
            self._heard.append(change)
        if self.version is not None:
            self._is_late = change.version < self.version
            self._follow(change, self._told)
            self._believe(change)
        return True

    def _known(self, change: Change) -> int:
        """Tell up to which version of a list an entry is known that is said to have come; 0 = it is new."""
        place = change.connection_id, change.entry
        if change.kind != "+" or self._told.identities.get(place) != change.identity:
            return 0
        if self.version is None or change.version <= self.version:
            return 0  # it was on its way when the census was taken: lists may be older
        if self._told.data.get(place) != change.data:
            return 0
        if change.is_identity and change.identity not in self._identities:
            return 0
        return self._last_seen.get(place, self.version)

    def interrupted(self) -> None:
        """Know that notices may have been lost, and Redis' state with them: who is in doubt is so anew."""
        if self._doubtful:
            self._doubtful.clear()
            self.has_hole = True

    def agrees(self, version: int) -> bool:
        """True if nothing was missed of a roster that has this version now; 0: nothing was told of who is in it."""
        if self.has_hole or self._is_late:
            return False
        return version == self.version if version else not self._told.identities

    def begin_census(self) -> None:
        """Know that the roster is being read from now on."""
        self._heard = []

    def abandon_census(self) -> None:
        """Know that it could not be read."""
        self._heard = None

    def settle(self, census: Census, now_s: float) -> list[Difference]:
        """Take the census; returns what is to be told, departures first."""
        heard, self._heard = self._heard or [], None
        now = _Roster()
        for member in census.members:
            now.put(_place(member), member.identity, member.data)
        before = self.version or 0
        is_first, self.version = self.version is None, census.version
        if self._run and census.run != self._run:
            self._older_until_s = now_s + self._grace_s
        self._run = census.run
        self.has_hole = self._is_late = False
        later = [change for change in heard if change.version > census.version]
        if is_first:
            self._told, self._identities = now, {identity: place for place, identity in now.identities.items()}
            for change in later:
                self._follow(change, now)
                self._believe(change)
            return []
        for change in later:
            self._follow(change, now)
            now.apply(change)
        self._settled_version, self._late_until_s = census.version, now_s + LATE_S
        self._has_strangers = now_s < self._older_until_s and self._leave_out_strangers(now)
        gone = list(self._departures(now, now_s))
        come = list(self._arrivals(census, now))
        for place in self._doubtful:
            identity = self._told.identities.get(place)
            if identity is not None:
                now.put(place, identity, self._told.data.get(place))
        self._last_seen = {place: self._last_seen.get(place, before) for place in self._doubtful}
        self._told = now
        for difference in gone + come:
            if difference.is_identity and difference.kind == "left":
                del self._identities[difference.member.identity]
            elif difference.is_identity:
                self._identities[difference.member.identity] = _place(difference.member)
        return gone + come

    def current(self, difference: Difference) -> Difference | None:
        """Tell a difference that is told later as it is now; None = what was heard since has overtaken it."""
        member, place = difference.member, _place(difference.member)
        is_here = self._told.identities.get(place) == member.identity
        if difference.kind == "left":
            return None if is_here else difference
        return replace(difference, member=replace(member, data=self._told.data.get(place))) if is_here else None

    def _follow(self, change: Change, roster: _Roster) -> None:
        """See whether a change follows what is known."""
        version = self.version or 0
        was_empty = change.previous == 0 and not roster.identities
        if change.previous == version or (was_empty and change.version > version):
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
        self._doubtful.pop(place, None)
        self._last_seen.pop(place, None)
        for other in self._told.apply(change):
            self._doubtful.pop(_place(other), None)
            self.unsaid.append(Difference("left", other))

    def _confirm(self, place: _Place) -> None:
        """Take a departure for sure, if it was in doubt: its notice came, behind a census that had it."""
        identity = self._told.identities.get(place)
        if identity is None or self._doubtful.pop(place, None) is None:
            return
        member = self._told.member(place, identity)
        self._told.take(place)
        has_left = identity in self._identities and identity not in self._told.counts
        if has_left:
            del self._identities[identity]
        self.unsaid.append(Difference("left", member, has_left))

    def _leave_out_strangers(self, now: _Roster) -> bool:
        """Keep to what is told, apart from what is missing; returns True if there was anything else."""
        has_strangers = False
        for place, identity in list(now.identities.items()):
            data = self._told.data.get(place)
            if self._told.identities.get(place) != identity:
                now.take(place)
                has_strangers = True
            elif now.data.get(place) != data:
                now.put(place, identity, data)
                has_strangers = True
        return has_strangers

    def _departures(self, now: _Roster, now_s: float) -> Iterator[Difference]:
        """Find who was told to be here and is not, for so long. With its last entry an identity goes too."""
        missing = {place: identity for place, identity in self._told.identities.items() if place not in now.identities}
        for identity, place in self._identities.items():
            if identity not in self._told.counts and identity not in now.counts:
                missing.setdefault(place, identity)  # its other entries were told to go one by one
        before, self._doubtful = self._doubtful, {}
        ripe: dict[_Place, str] = {}
        for place, identity in missing.items():
            since_s = before.get(place, now_s)
            if now_s - since_s >= self._grace_s:
                ripe[place] = identity
            else:
                self._doubtful[place] = since_s
        for place, identity in self._told.identities.items():
            if now.identities.get(place, identity) != identity:
                ripe[place] = identity  # its connection is somebody else now
        staying = now.counts.keys() | {missing[place] for place in self._doubtful}
        last = {identity: place for place, identity in ripe.items()}
        for place, identity in ripe.items():
            is_identity = identity in self._identities and identity not in staying and last[identity] == place
            yield Difference("left", self._told.member(place, identity), is_identity)

    def _arrivals(self, census: Census, now: _Roster) -> Iterator[Difference]:
        """Find who is here and was not told to be, and whose data is not what was told."""
        identities = set(self._identities)
        for member in census.members:
            identity, place = member.identity, _place(member)
            if now.identities.get(place) != identity:
                continue  # gone again meanwhile, as was heard
            if identity not in identities or self._told.identities.get(place) != identity:
                yield Difference("joined", member, identity not in identities)
                identities.add(identity)
            elif now.data.get(place) != self._told.data.get(place):
                yield Difference("updated", member)
        for place, identity in now.identities.items():  # of whom only later entries were heard
            if identity not in identities:
                yield Difference("joined", now.member(place, identity), True)
                identities.add(identity)


def _place(member: Member) -> _Place:
    return member.owner.connection_id, member.entry
