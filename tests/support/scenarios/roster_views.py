"""Members, changes and views of a roster."""

from snorky.gateway.contracts.directory import Member, Owner, RosterSnapshot
from snorky.gateway.presence.roster_view import GRACE_S, Difference, RosterView
from snorky.gateway.protocol.publication import Change


def member(identity: str, serial: int = 1, entry: str = "", *, incarnation: str = "i", data: object = None) -> Member:
    return Member(identity, Owner("n", incarnation, serial), entry, data)


def change(
    version: int, kind: str, identity: str, serial: int = 1, *, is_identity: bool = True, previous: int | None = None
) -> Change:
    """Make a change. previous: the version before, unless it is another one."""
    assert kind in ("+", "-", "=")
    return Change(
        kind, is_identity, identity, f"n.{serial}", "", version, version - 1 if previous is None else previous
    )


def begun(*members: Member, version: int = 10) -> RosterView:
    presence = RosterView()
    presence.begin_census(0.0)
    assert presence.settle(RosterSnapshot(version, members), 0.0) == []
    return presence


def settled(presence: RosterView, version: int, *members: Member, at_s: float = 0.0) -> list[str]:
    """Apply a census, and another when all suspected members have left: departures, then what the first reported."""
    first = looked(presence, version, *members, at_s=at_s)
    return [*looked(presence, version, *members, at_s=at_s + GRACE_S), *first]


def looked(presence: RosterView, version: int, *members: Member, at_s: float) -> list[str]:
    presence.begin_census(at_s)
    return [told(each) for each in presence.settle(RosterSnapshot(version, members), at_s)]


def told(difference: Difference) -> str:
    who = f"{difference.kind} {difference.member.identity} {difference.member.owner.serial}{difference.member.entry}"
    return who if difference.is_identity or difference.kind == "updated" else f"({who})"
