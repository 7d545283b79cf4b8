"""RosterView: whatever notices are lost, subscribers end with the correct members, and no change is reported twice."""

from time import process_time

from snorky.gateway.contracts.directory import Member, Owner, RosterSnapshot
from snorky.gateway.presence.roster_view import GRACE_S, LATE_S, LEFT_DATA_MAX_BYTES, Difference, RosterView, change_of
from snorky.gateway.protocol.publication import Change
from tests.support.scenarios.roster_views import begun, change, looked, member, settled, told


def test_members_of_the_first_census_are_not_reported() -> None:
    assert settled(begun(member("ann")), 10, member("ann")) == []


def test_received_changes_are_not_reported_again() -> None:
    presence = begun(member("ann"))
    assert presence.receive(change(11, "+", "bob", 2), 0.0) and presence.receive(change(12, "-", "ann"), 0.0)
    assert presence.version == 12
    assert settled(presence, 12, member("bob", 2)) == []


def test_missed_changes_are_reported_departures_first() -> None:
    assert settled(begun(member("ann")), 13, member("bob", 2)) == ["left ann 1", "joined bob 2"]


def test_a_member_missing_in_one_census_has_not_left() -> None:
    presence = begun(member("ann"))
    assert looked(presence, 13, member("bob", 2), at_s=0.0) == ["joined bob 2"]
    assert presence.is_doubtful
    assert looked(presence, 14, member("ann"), member("bob", 2), at_s=GRACE_S) == [], "it was entered again"
    assert not presence.is_doubtful


def test_members_missing_in_two_censuses_have_left_and_no_others() -> None:
    presence = begun(member("ann"), member("bob", 2))
    assert looked(presence, 13, member("bob", 2), at_s=0.0) == []
    assert looked(presence, 0, at_s=GRACE_S - 0.1) == []  # Redis has lost its state
    assert looked(presence, 0, at_s=GRACE_S) == ["left ann 1"]
    assert looked(presence, 20, member("bob", 2), at_s=GRACE_S + 1) == []


def looked_at(presence: RosterView, run: str, *members: Member, at_s: float) -> list[str]:
    presence.begin_census(at_s)
    return [told(each) for each in presence.settle(RosterSnapshot(20, members, run), at_s)]


def test_a_census_that_was_read_long_ago_does_not_confirm_a_member_of_an_older_copy() -> None:
    presence = RosterView()
    assert looked_at(presence, "first", member("ann"), at_s=0.0) == []
    assert looked_at(presence, "second", member("ann"), member("old", 2), at_s=1.0) == []
    presence.begin_census(2.0)  # then the node stalls
    assert presence.settle(RosterSnapshot(20, [member("ann"), member("old", 2)], "second"), 2.0 + GRACE_S) == []
    assert presence.is_doubtful
    assert looked_at(presence, "second", member("ann"), at_s=3.0 + GRACE_S) == []


def test_a_member_only_in_an_older_copy_has_not_joined() -> None:
    ann, old = member("ann", data="now"), member("ann", data="then")
    presence = RosterView()
    assert looked_at(presence, "a", ann, at_s=0.0) == []
    assert looked_at(presence, "b", old, member("bob", 2), member("cleo", 3), at_s=1.0) == []
    assert presence.is_doubtful
    assert presence.receive(change(21, "+", "dan", 4), 2.0)
    here = [ann, member("cleo", 3), member("dan", 4)]
    assert looked_at(presence, "b", *here, at_s=GRACE_S) == [], "too early"
    assert presence.is_doubtful
    assert looked_at(presence, "b", *here, at_s=1.0 + GRACE_S) == ["joined cleo 3"]
    assert not presence.is_doubtful
    assert looked_at(presence, "b", *here, at_s=2.0 + GRACE_S) == []


def test_without_differences_after_a_restart_no_second_census_is_needed() -> None:
    presence = RosterView()
    assert looked_at(presence, "a", member("ann"), at_s=0.0) == []
    assert looked_at(presence, "b", member("ann"), at_s=1.0) == [] and not presence.is_doubtful
    assert looked_at(presence, "b", member("ann"), member("bob", 2), at_s=1.0) == []


def test_an_interruption_restarts_the_grace_period() -> None:
    presence = begun(member("ann"))
    assert looked(presence, 13, at_s=0.0) == []
    presence.interrupted()
    assert not presence.agrees(13)
    assert looked(presence, 13, at_s=GRACE_S) == []
    assert looked(presence, 13, at_s=2 * GRACE_S) == ["left ann 1"]


def test_departure_whose_notice_arrives_is_no_longer_suspected() -> None:
    presence = begun(member("ann"), member("bob", 2))
    assert looked(presence, 13, member("bob", 3), at_s=0.0) == ["(joined bob 3)"]
    assert not presence.receive(change(11, "-", "ann"), 1.0) and not presence.receive(change(12, "-", "bob", 2), 1.0)
    assert list(map(told, presence.unsaid)) == ["left ann 1", "(left bob 2)"], "for bob is here by another connection"
    assert not presence.is_doubtful
    assert looked(presence, 13, member("bob", 3), at_s=GRACE_S) == []


def test_notice_that_the_first_census_had_and_the_last_of_them_that_was_lost_is_seen() -> None:
    presence = begun(member("ann"), version=13)
    assert presence.agrees(13)
    assert presence.receive(change(12, "-", "ann"), 0.0)
    assert not presence.agrees(13), "the notice that it joined again has not arrived yet"
    assert settled(presence, 13, member("ann")) == ["joined ann 1"]


def test_connection_with_a_new_identity_is_reported_as_left_first() -> None:
    presence = begun(member("ann", data=1))
    assert looked(presence, 13, member("bob", data=2), at_s=0.0) == ["left ann 1", "joined bob 1"]


def test_late_difference_has_the_current_state() -> None:
    presence = begun(member("cleo", 3))
    presence.begin_census(0.0)
    bob, ann = presence.settle(RosterSnapshot(13, [member("cleo", 3), member("bob", 2), member("ann", data=1)]), 0.0)
    assert presence.receive(change(14, "-", "bob", 2), 0.0)
    assert presence.receive(Change("=", False, "ann", "n.1", "", 15, 14, 2), 0.0)
    assert presence.current(bob) is None
    assert presence.current(ann) == Difference("joined", member("ann", data=2), True)
    left = Difference("left", member("bob", 2), True)
    assert presence.current(left) == left
    assert presence.receive(change(16, "+", "bob", 2), 0.0) and presence.current(left) is None


def test_leave_that_was_missed_has_the_data_of_the_entry() -> None:
    presence = begun(member("ann", data={"name": "Ann"}), member("bob", 2))
    assert looked(presence, 13, member("bob", 2), at_s=0.0) == []
    presence.begin_census(GRACE_S)
    (left,) = presence.settle(RosterSnapshot(13, [member("bob", 2)]), GRACE_S)
    assert change_of(left) == Change("-", True, "ann", "n.1", data={"name": "Ann"})


def test_large_data_is_not_in_a_leave_that_was_missed() -> None:
    large = {"text": "x" * LEFT_DATA_MAX_BYTES}
    member = Member("ann", Owner("n", "i", 1), data=large)
    assert change_of(Difference("left", member)).data is None
    assert change_of(Difference("joined", member)).data == large


def test_thousands_of_entries_of_one_identity_take_no_time_each() -> None:
    crowd = [member("guest", serial) for serial in range(20_000)]
    presence = begun()
    began_s = process_time()
    assert len(looked(presence, 13, *crowd, at_s=0.0)) == 20_000
    assert presence.receive(change(14, "-", "guest", 0), 0.0)
    assert len(presence.unsaid) == 19_999
    assert process_time() - began_s < 5, "it took 0.2 s where it was written; with quadratic work it takes minutes"


def test_identity_joins_with_its_first_entry_and_leaves_with_its_last() -> None:
    presence = begun(member("ann", 1), member("bob", 9))
    two = [member("bob", 9), member("cleo", 2), member("cleo", 3)]
    assert settled(presence, 13, *two) == ["left ann 1", "joined cleo 2", "(joined cleo 3)"]
    assert settled(presence, 14, member("bob", 9), member("cleo", 3)) == ["(left cleo 2)"]
    assert settled(presence, 15, member("bob", 9), member("bob", 4)) == ["left cleo 3", "(joined bob 4)"]


def test_missed_identity_joins_although_another_entry_of_it_was_received() -> None:
    presence = begun()
    assert presence.receive(change(12, "+", "ann", 2, is_identity=False), 0.0)
    assert settled(presence, 12, member("ann", 1), member("ann", 2)) == ["joined ann 1"]


def test_one_connection_for_another_of_the_same_identity_is_no_coming_and_going() -> None:
    assert settled(begun(member("ann", 1)), 13, member("ann", 2)) == ["(left ann 1)", "(joined ann 2)"]


def test_another_incarnation_of_the_node_is_the_same_entry() -> None:
    assert settled(begun(member("ann")), 13, member("ann", incarnation="j")) == []


def test_last_reported_entry_that_leaves_removes_the_unreported_ones() -> None:
    presence = begun(member("ann", 1))
    assert presence.receive(change(15, "-", "ann", 2), 0.0)  # the leave of 1 and the join of 2 were never reported
    assert list(map(told, presence.unsaid)) == ["(left ann 1)"]
    assert settled(presence, 15) == []


def test_notice_in_the_census_that_arrives_later_is_not_reported_twice() -> None:
    presence = begun()
    assert settled(presence, 13, member("bob", 2)) == ["joined bob 2"]
    assert not presence.receive(change(13, "+", "bob", 2), 1.0)
    assert presence.receive(change(14, "-", "bob", 2), 1.0)
    assert settled(presence, 14) == []


def test_redis_clock_that_was_set_back_suppresses_notices_only_briefly() -> None:
    presence = begun()
    settled(presence, 2_000_000, member("bob", 2))
    assert not presence.receive(change(5, "-", "bob", 2), GRACE_S + LATE_S - 0.1)
    assert presence.receive(change(6, "-", "bob", 2), GRACE_S + LATE_S)


def test_changes_received_during_a_census_count_if_they_are_later() -> None:
    presence = begun(member("ann"))
    presence.begin_census(0.0)
    assert presence.receive(change(12, "+", "bob", 2), 0.0)  # in the census
    assert presence.receive(change(14, "-", "ann"), 0.0) and presence.receive(change(15, "+", "dan", 4), 0.0)  # not
    census = RosterSnapshot(13, [member("ann"), member("bob", 2), member("cleo", 3)])
    assert [told(each) for each in presence.settle(census, 0.0)] == ["joined cleo 3"]
    assert presence.version == 15
    assert settled(presence, 15, member("bob", 2), member("cleo", 3), member("dan", 4)) == []


def test_only_missed_data_is_reported() -> None:
    presence = begun(member("ann", entry="c", data=1), member("ann", entry="d", data=1), member("bob", 2, data=[]))
    assert presence.receive(Change("=", False, "ann", "n.1", "d", 11, 10, 5), 0.0)
    now = [member("ann", entry="c", data=2), member("ann", entry="d", data=5), member("bob", 2, data=[])]
    assert settled(presence, 13, *now) == ["updated ann 1c"]
    assert settled(presence, 14, *now) == []


def test_departures_are_reported_with_the_members_last_data() -> None:
    presence = begun(member("ann", entry="c", data=1))
    presence.receive(Change("=", False, "ann", "n.1", "c", 11, 10, 2), 0.0)
    assert looked(presence, 13, at_s=0.0) == []
    presence.begin_census(GRACE_S)
    (left,) = presence.settle(RosterSnapshot(13, []), GRACE_S)
    assert (left.kind, left.member) == ("left", member("ann", entry="c", incarnation="", data=2))
