"""RosterView: one roster's members, as the subscribers on this node have been notified. Pure, no await.

Rules:
- It starts with a census (a snapshot of the roster). The subscribers know its members, because each of them requests
  a list when it subscribes. From then on each received notice changes it.
- Notices can be lost: they are published but not stored. Each contains the version of the one before it, so a notice
  that does not follow reveals a loss; if none arrives, the roster's version reveals it (`agrees`). Then a census is
  needed, and `settle` returns the differences to report. Notices received during the census count if they are later.
- A member may be missing from a census only temporarily: Redis may have lost its state, and nodes register their
  members again within 10 s. Such a member is suspected to have left. It is reported as left if a census that begins
  `GRACE_S` later still lacks it, with no interruption in between.
- After a restart Redis may have loaded an older copy, from which nodes remove stale members within 10 s. So if the
  first census of another run has a new member, it is reported only if a census that begins `GRACE_S` later has it too.
- A notice that the census includes, but that arrives after it, must not be reported twice: `receive` returns False. The
  same is true for the join of an entry that subscribers know: its leave was missed, because other nodes took its node
  for dead. A list sent in between may lack the entry, so `known` is the last list version that surely has it.
- Not every entry is reported (an identity's second connection is not). So when an identity's last entry leaves, its
  remaining local entries are removed too; the differences to report are in `unsaid`.
- An entry is identified by its connection and its entry name, regardless of its node's incarnation.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from snorky.gateway.contracts.directory import Member, Owner, RosterSnapshot
from snorky.gateway.protocol.codec import json_size
from snorky.gateway.protocol.publication import Change

__all__ = ["GRACE_S", "LEFT_DATA_MAX_BYTES", "Difference", "RosterView", "change_in", "change_of"]

GRACE_S: Final = 12.0
LATE_S: Final = 5.0  # notices delayed more are reported, perhaps twice: the clock of Redis may have been set back
LEFT_DATA_MAX_BYTES: Final = 4_096  # data with a leave: when a node dies, Redis publishes thousands of them at once

_KINDS: Final[dict[str, Literal["+", "-", "="]]] = {"joined": "+", "left": "-", "updated": "="}
_Place = tuple[str, str]  # connection, entry


@dataclass(frozen=True, slots=True)
class Difference:
    """A change to report to subscribers. is_identity: the identity's first or last entry."""

    kind: Literal["joined", "left", "updated"]
    member: Member
    is_identity: bool = False


def change_in(kind: Literal["+", "-", "="], member: Member, *, is_identity: bool) -> Change:
    """Return a change of a roster, without its versions. A leave has no data above LEFT_DATA_MAX_BYTES."""
    owner, data = member.owner, member.data
    if kind == "-" and data is not None and json_size(data) > LEFT_DATA_MAX_BYTES:
        data = None
    return Change(kind, is_identity, member.identity, owner.connection_id, member.entry, data=data)


def change_of(difference: Difference) -> Change:
    """Return the change that a difference reports, without its versions."""
    return change_in(_KINDS[difference.kind], difference.member, is_identity=difference.is_identity)


class _Roster:
    """Entries by place, with their identities and data. counts: entries per identity."""

    __slots__ = ("counts", "data", "identities")

    def __init__(self) -> None:
        self.identities: dict[_Place, str] = {}
        self.counts: dict[str, int] = {}
        self.data: dict[_Place, Any] = {}  # only of entries with data

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
        """Apply a change; returns the other entries that were removed with their identity's last one."""
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


class RosterView:
    """One roster. version: of the last notice that subscribers know; None before the first census.

    has_hole: notices were missed, because one arrived that does not follow. known: for the last change received,
    subscribers with a list up to this version know it already; 0 = none does. unsaid: differences found by received
    notices; the caller reports them and clears the list. grace_s: time from suspecting a member until reporting it.
    """

    __slots__ = (
        "_census_s",
        "_doubtful",
        "_grace_s",
        "_has_strangers",
        "_heard",
        "_identities",
        "_is_late",
        "_last_seen",
        "_late_until_s",
        "_older_until_s",
        "_reported",
        "_run",
        "_settled_version",
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
        self._reported = _Roster()
        self._identities: dict[str, _Place] = {}  # identities reported as joined, each with one of its entries
        self._doubtful: dict[_Place, float] = {}  # entries suspected to have left, with the time of the suspicion
        self._last_seen: dict[_Place, int] = {}  # of those: the last roster version that surely had the entry
        self._heard: list[Change] | None = None  # changes received during a census; None = no census
        self._census_s = 0.0  # when it began
        self._is_late = False  # notices are arriving that the census includes
        self._settled_version = 0  # changes up to this version have been reported
        self._late_until_s = 0.0
        self._run = ""
        self._older_until_s = 0.0  # until then, Redis may hold an older copy
        self._has_strangers = False  # the census had members that are not reported for that reason

    @property
    def is_doubtful(self) -> bool:
        """True while a member is suspected to have left: then another census is needed after the grace period."""
        return bool(self._doubtful) or self._has_strangers

    def receive(self, change: Change, now_s: float) -> bool:
        """Process a received change. False: it has been reported already, as a difference."""
        self.known = self._known(change)
        if change.version > self._settled_version:
            self._settled_version = 0  # changes arrive in the order of versions: no reported one can follow
        elif now_s < self._late_until_s:
            if change.kind == "-":
                self._confirm((change.connection_id, change.entry))
            return False
        if self._heard is not None:
            self._heard.append(change)
        if self.version is not None:
            self._is_late = change.version < self.version
            self._follow(change, self._reported)
            self._believe(change)
        return True

    def _known(self, change: Change) -> int:
        """Return the last list version that surely has an entry whose join was received; 0 = the entry is new."""
        place = change.connection_id, change.entry
        if change.kind != "+" or self._reported.identities.get(place) != change.identity:
            return 0
        if self.version is None or change.version <= self.version:
            return 0  # it was in transit during the census: lists may be older
        if self._reported.data.get(place) != change.data:
            return 0
        if change.is_identity and change.identity not in self._identities:
            return 0
        return self._last_seen.get(place, self.version)

    def interrupted(self) -> None:
        """Presence events may have been lost. Restart the grace period of every member suspected to have left."""
        if self._doubtful:
            self._doubtful.clear()
            self.has_hole = True

    def agrees(self, version: int) -> bool:
        """True if nothing was missed of a roster whose version is now `version`; 0: it has had no notices."""
        if self.has_hole or self._is_late:
            return False
        return version == self.version if version else not self._reported.identities

    def begin_census(self, now_s: float) -> None:
        """Collect changes, because a census is being read. now_s: of the loop; a node that stalls settles it late."""
        self._heard, self._census_s = [], now_s

    def abandon_census(self) -> None:
        """Stop collecting changes, because the census could not be read."""
        self._heard = None

    def settle(self, census: RosterSnapshot, now_s: float) -> list[Difference]:
        """Process the census; returns the differences to report, leaves first."""
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
            self._reported, self._identities = now, {identity: place for place, identity in now.identities.items()}
            for change in later:
                self._follow(change, now)
                self._believe(change)
            return []
        for change in later:
            self._follow(change, now)
            now.apply(change)
        self._settled_version, self._late_until_s = census.version, now_s + LATE_S
        self._has_strangers = self._census_s < self._older_until_s and self._leave_out_strangers(now)
        gone = list(self._departures(now, now_s))
        come = list(self._arrivals(census, now))
        for place in self._doubtful:
            identity = self._reported.identities.get(place)
            if identity is not None:
                now.put(place, identity, self._reported.data.get(place))
        self._last_seen = {place: self._last_seen.get(place, before) for place in self._doubtful}
        self._reported = now
        for difference in gone + come:
            if difference.is_identity and difference.kind == "left":
                del self._identities[difference.member.identity]
            elif difference.is_identity:
                self._identities[difference.member.identity] = _place(difference.member)
        return gone + come

    def current(self, difference: Difference) -> Difference | None:
        """Refresh a delayed difference with the current state; None if a newer change has superseded it."""
        member, place = difference.member, _place(difference.member)
        is_here = self._reported.identities.get(place) == member.identity
        if difference.kind == "left":
            return None if is_here else difference
        return replace(difference, member=replace(member, data=self._reported.data.get(place))) if is_here else None

    def _follow(self, change: Change, roster: _Roster) -> None:
        """Update `version` if the change follows it; else set `has_hole` if the change is newer."""
        version = self.version or 0
        was_empty = change.previous == 0 and not roster.identities
        if change.previous == version or (was_empty and change.version > version):
            self.version = change.version
        elif change.version > version:  # else it was in transit during the census
            self.has_hole = True

    def _believe(self, change: Change) -> None:
        """Apply a change that subscribers are notified of now."""
        place = change.connection_id, change.entry
        if change.is_identity and change.kind == "+":
            self._identities[change.identity] = place
        elif change.is_identity:
            self._identities.pop(change.identity, None)
        self._doubtful.pop(place, None)
        self._last_seen.pop(place, None)
        for other in self._reported.apply(change):
            self._doubtful.pop(_place(other), None)
            self.unsaid.append(Difference("left", other))

    def _confirm(self, place: _Place) -> None:
        """Confirm the leave of a suspected member: its notice arrived after a census that includes it."""
        identity = self._reported.identities.get(place)
        if identity is None or self._doubtful.pop(place, None) is None:
            return
        member = self._reported.member(place, identity)
        self._reported.take(place)
        has_left = identity in self._identities and identity not in self._reported.counts
        if has_left:
            del self._identities[identity]
        self.unsaid.append(Difference("left", member, has_left))

    def _leave_out_strangers(self, now: _Roster) -> bool:
        """Remove from `now` what was not reported before; returns True if there was anything to remove."""
        has_strangers = False
        for place, identity in list(now.identities.items()):
            data = self._reported.data.get(place)
            if self._reported.identities.get(place) != identity:
                now.take(place)
                has_strangers = True
            elif now.data.get(place) != data:
                now.put(place, identity, data)
                has_strangers = True
        return has_strangers

    def _departures(self, now: _Roster, now_s: float) -> Iterator[Difference]:
        """Find members that were reported and are missing for the grace period, and identities with no entry left."""
        missing = {
            place: identity for place, identity in self._reported.identities.items() if place not in now.identities
        }
        for identity, place in self._identities.items():
            if identity not in self._reported.counts and identity not in now.counts:
                missing.setdefault(place, identity)  # its other entries were reported as left one by one
        before, self._doubtful = self._doubtful, {}
        due: dict[_Place, str] = {}
        for place, identity in missing.items():
            since_s = before.get(place, now_s)
            if self._census_s - since_s >= self._grace_s:
                due[place] = identity
            else:
                self._doubtful[place] = since_s
        for place, identity in self._reported.identities.items():
            if now.identities.get(place, identity) != identity:
                due[place] = identity  # the connection has another identity now
        staying = now.counts.keys() | {missing[place] for place in self._doubtful}
        last = {identity: place for place, identity in due.items()}
        for place, identity in due.items():
            is_identity = identity in self._identities and identity not in staying and last[identity] == place
            yield Difference("left", self._reported.member(place, identity), is_identity)

    def _arrivals(self, census: RosterSnapshot, now: _Roster) -> Iterator[Difference]:
        """Find members that were not reported, and members whose data has changed since it was reported."""
        identities = set(self._identities)
        for member in census.members:
            identity, place = member.identity, _place(member)
            if now.identities.get(place) != identity:
                continue  # it has left since, by a received notice
            if identity not in identities or self._reported.identities.get(place) != identity:
                yield Difference("joined", member, identity not in identities)
                identities.add(identity)
            elif now.data.get(place) != self._reported.data.get(place):
                yield Difference("updated", member)
        for place, identity in now.identities.items():  # identities of which only later entries were received
            if identity not in identities:
                yield Difference("joined", now.member(place, identity), True)
                identities.add(identity)


def _place(member: Member) -> _Place:
    return member.owner.connection_id, member.entry
