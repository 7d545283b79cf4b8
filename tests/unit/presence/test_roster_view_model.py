"""The view of a roster against a model: whatever was lost, in the end it is correct."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from snorky.gateway.contracts.directory import Member, RosterSnapshot
from snorky.gateway.presence.roster_view import GRACE_S, Difference, RosterView
from snorky.gateway.protocol.publication import Change
from tests.support.scenarios.roster_views import begun, change, member, settled

SPARE = 1_000  # so that versions of the model have room below


# -- against a model --------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """A roster, its notices (some are lost), and the view of a subscriber that applies each of them."""

    presence: RosterView = field(default_factory=begun)
    roster: dict[tuple[str, int], Member] = field(default_factory=dict)
    lost: dict[tuple[str, int], Member] | None = (
        None  # the content of Redis before it lost its state; valid until it is restored
    )
    version: int = SPARE
    last: int = 0  # version of the last notice; 0 if there is none
    now_s: float = 0.0
    entries: set[tuple[str, int]] = field(default_factory=set)  # view of a subscriber to entries
    identities: set[str] = field(default_factory=set)  # view of a subscriber to identities only
    on_its_way: list[Change] = field(default_factory=list)

    def flip(self, identity: str, serial: int) -> None:
        """Add or remove an entry."""
        self.restore()
        self.version += 1
        previous, self.last = self.last, self.version
        place = (identity, serial)
        others = sum(other != place for other in self.roster if other[0] == identity)
        kind = "-" if place in self.roster else "+"
        if kind == "+":
            self.roster[place] = member(identity, serial)
        else:
            del self.roster[place]
        self.last = self.last if self.roster else 0
        notice = change(self.version, kind, identity, serial, is_identity=not others, previous=previous)
        self.on_its_way.append(notice)

    def flush(self) -> None:
        """Let Redis lose its state, for less than the grace period."""
        self.restore()
        self.lost, self.roster, self.last = self.roster, {}, 0
        self.presence.interrupted()

    def restore(self) -> None:
        """Register all again, without notices."""
        if self.lost is not None:
            self.roster, self.lost = self.lost, None
            self.version += 1
            self.last = self.version if self.roster else 0

    def wait(self) -> None:
        """Advance by half of the grace period."""
        self.restore()
        self.now_s += GRACE_S / 2

    def arrive(self) -> None:
        """Deliver everything in flight."""
        on_its_way, self.on_its_way = self.on_its_way, []
        for each in on_its_way:
            if self.presence.receive(each, self.now_s):
                serial = int(each.connection_id.partition(".")[2])
                self.believe(each.kind == "+", each.identity, serial, is_identity=each.is_identity)
            unsaid, self.presence.unsaid = self.presence.unsaid, []
            self.take(unsaid)

    def believe(self, has_joined: bool, identity: str, serial: int, *, is_identity: bool) -> None:
        (self.entries.add if has_joined else self.entries.discard)((identity, serial))
        if is_identity:
            (self.identities.add if has_joined else self.identities.discard)(identity)

    @property
    def is_true(self) -> bool:
        """The view is correct."""
        return self.entries == set(self.roster) and self.identities == {identity for identity, _ in self.roster}

    def census(self) -> RosterSnapshot:
        self.presence.begin_census(self.now_s)
        return RosterSnapshot(self.last or self.version, [self.roster[place] for place in sorted(self.roster)])

    def settle(self, census: RosterSnapshot) -> list[Difference]:
        differences = self.presence.settle(census, self.now_s)
        self.take(differences)
        return differences

    def take(self, differences: list[Difference]) -> None:
        for each in differences:
            identity, serial = each.member.identity, each.member.owner.serial
            self.believe(each.kind == "joined", identity, serial, is_identity=each.is_identity)

    def end(self) -> None:
        """Deliver everything, and take censuses until no member is suspected."""
        self.restore()
        self.arrive()
        for _ in range(3):
            self.settle(self.census())
            self.now_s += GRACE_S


flips = st.sampled_from([("flip", identity, serial) for identity, serial in zip("aaabb", range(5), strict=True)])


others = st.sampled_from([("arrive",), ("lose",), ("look",), ("read",), ("wait",), ("flush",)])


Script = list[tuple[object, ...]]


def play(model: Model, script: Script) -> Iterator[list[Difference]]:
    """Play a script; returns what each census reported."""
    census: RosterSnapshot | None = None
    for step in script:
        match step:
            case ("flip", str(identity), int(serial)):
                model.flip(identity, serial)
            case ("arrive",):
                model.arrive()
            case ("lose",):
                model.on_its_way.clear()
                model.presence.interrupted()
            case ("wait",):
                model.wait()
            case ("flush",):
                model.flush()
            case ("read",):  # the answer is in flight while other things happen
                census = model.census()
            case ("look",):
                yield model.settle(census or model.census())
                census = None


@settings(max_examples=1_000, deadline=None)
@given(st.lists(flips | flips | others, max_size=40))
@example([("flip", "b", 4), ("lose",), ("read",), ("flip", "b", 3), ("flip", "b", 4), ("arrive",), ("look",)])
def test_in_the_end_all_views_are_correct_whatever_was_lost(script: Script) -> None:
    model = Model()
    for _ in play(model, script):
        pass
    model.restore()
    model.arrive()
    if model.presence.agrees(model.last) and not model.presence.is_doubtful:
        assert model.is_true
    model.end()
    assert model.is_true and model.presence.agrees(model.last)


# a census is read before the node stalls, and settled after it
STALLED: Script = [
    ("flip", "b", 3),
    ("arrive",),
    ("flip", "b", 3),
    ("look",),
    ("read",),
    ("flip", "b", 3),
    *[("wait",)] * 2,
    ("look",),
]


@settings(max_examples=500, deadline=None, report_multiple_bugs=False)
@given(st.lists(flips | others, max_size=40))
@example(STALLED)
def test_no_present_member_is_reported_as_left(script: Script) -> None:
    """Redis loses its state repeatedly, each time for less than the grace period."""
    model = Model()
    for differences in play(model, script):
        here = model.roster if model.lost is None else model.lost
        for each in differences:
            if each.kind == "left":
                identity, serial = each.member.identity, each.member.owner.serial
                assert (identity, serial) not in here
                assert not (each.is_identity and any(other == identity for other, _ in here))


@settings(max_examples=300, deadline=None)
@given(st.lists(flips | st.sampled_from([("arrive",), ("look",), ("wait",)]), max_size=40))
def test_without_losses_nothing_is_reported_twice(script: Script) -> None:
    """Notices may be late: a census overtakes them on another connection."""
    model = Model()
    joined: list[tuple[str, int]] = []
    for differences in play(model, script):
        joined += [(each.member.identity, each.member.owner.serial) for each in differences if each.kind == "joined"]
    model.arrive()
    assert model.is_true
    assert settled(model.presence, model.last or model.version, *model.census().members, at_s=model.now_s) == []
