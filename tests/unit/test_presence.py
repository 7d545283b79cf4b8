"""Presence: whatever notices are lost, subscribers end with the truth, and nothing that was heard is told again."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.directory import Census, Member, Owner
from gateway.presence import LATE_S, Difference, Presence
from gateway.publication import Change

SPARE = 1_000  # so that versions of the model have room below


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


def begun(*members: Member, version: int = 10) -> Presence:
    presence = Presence()
    presence.begin_census()
    assert presence.settle(Census(version, members), 0.0, with_departures=False) == []
    return presence


def settled(
    presence: Presence, version: int, *members: Member, now_s: float = 0.0, is_second: bool = True
) -> list[str]:
    presence.begin_census()
    differences = presence.settle(Census(version, members), now_s, with_departures=is_second)
    return [told(each) for each in differences]


def told(difference: Difference) -> str:
    who = f"{difference.kind} {difference.member.identity} {difference.member.owner.serial}{difference.member.entry}"
    return who if difference.is_identity or difference.kind == "updated" else f"({who})"


def test_what_was_there_at_first_is_not_told() -> None:
    assert settled(begun(member("ann")), 10, member("ann")) == []


def test_what_was_heard_is_not_told_again() -> None:
    presence = begun(member("ann"))
    assert presence.hear(change(11, "+", "bob", 2), 0.0) and presence.hear(change(12, "-", "ann"), 0.0)
    assert presence.version == 12
    assert settled(presence, 12, member("bob", 2)) == []


def test_what_was_missed_is_told_departures_first() -> None:
    assert settled(begun(member("ann")), 13, member("bob", 2)) == ["left ann 1", "joined bob 2"]


def test_who_is_missing_at_first_sight_has_not_left_yet() -> None:
    presence = begun(member("ann"))
    assert settled(presence, 13, member("bob", 2), is_second=False) == ["joined bob 2"]
    assert presence.is_doubtful
    assert settled(presence, 14, member("ann"), member("bob", 2)) == [], "it was entered again, and has never left"
    assert not presence.is_doubtful


def test_who_is_missing_at_second_sight_has_left() -> None:
    presence = begun(member("ann"))
    assert settled(presence, 13, is_second=False) == []
    assert settled(presence, 13) == ["left ann 1"] and settled(presence, 13) == []


def test_identity_comes_with_its_first_entry_and_goes_with_its_last() -> None:
    presence = begun(member("ann", 1), member("bob", 9))
    two = [member("bob", 9), member("cleo", 2), member("cleo", 3)]
    assert settled(presence, 13, *two) == ["left ann 1", "joined cleo 2", "(joined cleo 3)"]
    assert settled(presence, 14, member("bob", 9), member("cleo", 3)) == ["(left cleo 2)"]
    assert settled(presence, 15, member("bob", 9), member("bob", 4)) == ["left cleo 3", "(joined bob 4)"]


def test_identity_whose_coming_was_missed_comes_though_another_entry_of_it_was_heard() -> None:
    presence = begun()
    assert presence.hear(change(12, "+", "ann", 2, is_identity=False), 0.0)
    assert settled(presence, 12, member("ann", 1), member("ann", 2)) == ["joined ann 1", "(joined ann 2)"][:1]


def test_one_connection_for_another_of_the_same_identity_is_no_coming_and_going() -> None:
    assert settled(begun(member("ann", 1)), 13, member("ann", 2)) == ["(left ann 1)", "(joined ann 2)"]


def test_another_incarnation_of_the_node_is_the_same_entry() -> None:
    assert settled(begun(member("ann")), 13, member("ann", incarnation="j")) == []


def test_last_entry_that_is_heard_to_leave_takes_those_along_of_which_nothing_was_told() -> None:
    presence = begun(member("ann", 1))
    assert presence.hear(change(15, "-", "ann", 2), 0.0)  # of 1, nobody was told that it went, nor of 2 that it came
    assert list(map(told, presence.unsaid)) == ["(left ann 1)"]
    assert settled(presence, 15) == []


def test_notice_that_was_in_the_census_and_comes_behind_it_is_not_told_twice() -> None:
    presence = begun()
    assert settled(presence, 13, member("bob", 2)) == ["joined bob 2"]
    assert not presence.hear(change(13, "+", "bob", 2), 1.0)
    assert presence.hear(change(14, "-", "bob", 2), 1.0)
    assert settled(presence, 14) == []


def test_clock_of_redis_that_was_set_back_silences_nobody_for_long() -> None:
    presence = begun()
    settled(presence, 2_000_000, member("bob", 2))
    assert not presence.hear(change(5, "-", "bob", 2), LATE_S - 0.1)
    assert presence.hear(change(6, "-", "bob", 2), LATE_S)


def test_what_is_heard_while_the_roster_is_read_counts_if_it_is_later() -> None:
    presence = begun(member("ann"))
    presence.begin_census()
    assert presence.hear(change(12, "+", "bob", 2), 0.0)  # in the census
    assert presence.hear(change(14, "-", "ann"), 0.0) and presence.hear(change(15, "+", "dan", 4), 0.0)  # not
    census = Census(13, [member("ann"), member("bob", 2), member("cleo", 3)])
    assert [told(each) for each in presence.settle(census, 0.0, with_departures=True)] == ["joined cleo 3"]
    assert presence.version == 15
    assert settled(presence, 15, member("bob", 2), member("cleo", 3), member("dan", 4)) == []


def test_data_that_was_missed_is_told_and_no_other() -> None:
    presence = begun(member("ann", entry="c", data=1), member("ann", entry="d", data=1), member("bob", 2, data=[]))
    assert presence.hear(Change("=", False, "ann", "n.1", "d", 11, 10, 5), 0.0)
    now = [member("ann", entry="c", data=2), member("ann", entry="d", data=5), member("bob", 2, data=[])]
    assert settled(presence, 13, *now) == ["updated ann 1c"]
    assert settled(presence, 14, *now) == []


def test_who_left_is_told_of_with_the_data_that_it_had() -> None:
    presence = begun(member("ann", entry="c", data=1))
    presence.hear(Change("=", False, "ann", "n.1", "c", 11, 10, 2), 0.0)
    assert settled(presence, 13, is_second=False) == []
    presence.begin_census()
    (left,) = presence.settle(Census(13, []), 0.0, with_departures=True)
    assert (left.kind, left.member) == ("left", member("ann", entry="c", incarnation="", data=2))


# -- against a model --------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """A roster, its notices, of which some are lost, and what a subscriber believes who takes each at its word."""

    presence: Presence = field(default_factory=begun)
    roster: dict[tuple[str, int], Member] = field(default_factory=dict)
    version: int = SPARE
    last: int = 0  # version of the last notice; 0 while the roster is empty
    entries: set[tuple[str, int]] = field(default_factory=set)  # believed, of who hears of every entry
    identities: set[str] = field(default_factory=set)  # believed, of who hears of identities only
    on_its_way: list[Change] = field(default_factory=list)

    def flip(self, identity: str, serial: int) -> None:
        """Let an entry come, or go."""
        self.version += 1
        previous, self.last = self.last, self.version
        place = (identity, serial)
        others = sum(other != place for other in self.roster if other[0] == identity)
        sign = "-" if place in self.roster else "+"
        if sign == "+":
            self.roster[place] = member(identity, serial)
        else:
            del self.roster[place]
        self.last = self.last if self.roster else 0
        notice = change(self.version, sign, identity, serial, is_identity=not others, previous=previous)
        self.on_its_way.append(notice)

    def arrive(self) -> None:
        """Let all that is on its way arrive."""
        on_its_way, self.on_its_way = self.on_its_way, []
        for each in on_its_way:
            if self.presence.hear(each, 0.0):
                serial = int(each.connection_id.partition(".")[2])
                self.believe(each.kind == "+", each.identity, serial, is_identity=each.is_identity)
            self.take(self.presence.unsaid)
            self.presence.unsaid = []

    def believe(self, has_joined: bool, identity: str, serial: int, *, is_identity: bool) -> None:
        (self.entries.add if has_joined else self.entries.discard)((identity, serial))
        if is_identity:
            (self.identities.add if has_joined else self.identities.discard)(identity)

    @property
    def is_true(self) -> bool:
        """What is believed is so."""
        return self.entries == set(self.roster) and self.identities == {identity for identity, _ in self.roster}

    def census(self) -> Census:
        return Census(self.last or self.version, [self.roster[place] for place in sorted(self.roster)])

    def settle(self, census: Census, *, with_departures: bool) -> None:
        self.take(self.presence.settle(census, 0.0, with_departures=with_departures))

    def take(self, differences: list[Difference]) -> None:
        for each in differences:
            identity, serial = each.member.identity, each.member.owner.serial
            self.believe(each.kind == "joined", identity, serial, is_identity=each.is_identity)


flips = st.tuples(st.just("flip"), st.sampled_from("ab"), st.integers(1, 3))
steps = st.one_of(flips, flips, st.just(("arrive",)), st.just(("lose",)), st.just(("look",)), st.just(("read",)))


@settings(max_examples=500, deadline=None)
@given(st.lists(steps, max_size=40))
def test_after_a_second_look_everybody_believes_the_truth_whatever_was_lost(script: list[tuple[object, ...]]) -> None:
    model = Model()
    census: Census | None = None
    for step in script:
        match step:
            case ("flip", str(identity), int(serial)):
                model.flip(identity, serial)
            case ("arrive",):
                model.arrive()
            case ("lose",):
                model.on_its_way.clear()
            case ("read",):  # the answer is under way while other things happen
                model.presence.begin_census()
                census = model.census()
            case ("look",):
                if census is None:
                    model.presence.begin_census()
                    census = model.census()
                model.settle(census, with_departures=False)
                census = None
    model.arrive()
    if model.presence.agrees(model.last) and not model.presence.is_doubtful:
        assert model.is_true
    model.presence.begin_census()
    model.settle(model.census(), with_departures=True)
    assert model.is_true and model.presence.agrees(model.last)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(flips, st.just(("arrive",)), st.just(("look",))), max_size=40))
def test_where_nothing_is_lost_nothing_is_told_twice(script: list[tuple[object, ...]]) -> None:
    model = Model()
    for step in script:
        match step:
            case ("flip", str(identity), int(serial)):
                model.flip(identity, serial)
            case ("arrive",):
                model.arrive()
            case ("look",):
                model.arrive()
                assert model.presence.agrees(model.last)
                model.presence.begin_census()
                assert model.presence.settle(model.census(), 0.0, with_departures=True) == []
