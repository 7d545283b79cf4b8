"""The lab's checker on journals made by hand: each verdict, and cases that are no fault."""

import pytest

from snorky.gateway.protocol.publication import Position
from tests.fault_lab.checker import Verdict, judge
from tests.fault_lab.figures import delays, healed_after_s
from tests.fault_lab.journal import Acked, Dropped, Entry, Gap, Journal, Received, Subscribed, Uncertain

A, B = "epoch-a", "epoch-b"


def at(offset: int, epoch: str = A, line: str = "") -> Position:
    return Position(epoch, offset, f"tag{line}{offset}")


def acked(*numbers: int, epoch: str = A, line: str = "", first_offset: int | None = None) -> list[Acked]:
    """Number n is published at second n, at offset n unless given."""
    shift = 0 if first_offset is None else first_offset - numbers[0]
    return [Acked("c", n, float(n), n + 0.1, at(n + shift, epoch, line)) for n in numbers]


def got(*numbers: int, epoch: str = A, line: str = "", late_s: float = 0.2, shift: int = 0) -> list[Entry]:
    return [Received(n + late_s, n, at(n + shift, epoch, line)) for n in numbers]


def began(at_s: float = 0.5, offset: int = 0) -> Subscribed:
    return Subscribed(at_s, at(offset), True)


def verdict_of(
    published: list[Acked], *entries: Entry, uncertain: list[Uncertain] | None = None, **how: bool
) -> Verdict:
    return judge(published, uncertain or [], [Journal("client-1", "c", list(entries))], **how)


def faults(verdict: Verdict) -> tuple[int, int, int, int]:
    return verdict.lost, verdict.duplicated, verdict.out_of_order, verdict.holes


def test_all_in_order_is_whole() -> None:
    verdict = verdict_of(acked(1, 2, 3), began(), *got(1, 2, 3))
    assert verdict.is_whole and verdict.delivered == verdict.acked == 3


def test_an_acknowledged_message_that_never_arrives_is_lost() -> None:
    verdict = verdict_of(acked(1, 2, 3), began(), *got(1, 2))
    assert faults(verdict) == (1, 0, 0, 0)
    assert verdict.examples == ["lost: client-1 on c: 3 at epoch-a:3:tag3, acknowledged 3.100"]


def test_a_message_lost_in_between_is_a_hole_too() -> None:
    assert faults(verdict_of(acked(1, 2, 3), began(), *got(1, 3))) == (1, 0, 0, 1)


def test_publications_before_the_subscription_are_not_required() -> None:
    assert verdict_of(acked(1, 2, 3), began(2.5, 2), *got(3)).is_whole


def test_publications_while_the_client_is_away_are_required() -> None:
    away = [began(), *got(1), Dropped(1.5, None), Subscribed(3.5, at(3), True)]
    replay = [Received(3.5, 2, at(2), True), Received(3.5, 3, at(3), True)]
    whole = verdict_of(acked(1, 2, 3, 4), *away, *replay, *got(4))
    assert whole.is_whole and whole.replayed == 2 and whole.disconnects == 1
    assert faults(verdict_of(acked(1, 2, 3, 4), *away, *replay[1:], *got(4))) == (1, 0, 0, 1)


def test_recovered_false_covers_publications_before_its_position() -> None:
    entries = [began(), *got(1), Dropped(1.5, None), Subscribed(3.5, at(3), False), *got(4)]
    verdict = verdict_of(acked(1, 2, 3, 4), *entries)
    assert verdict.is_whole and (verdict.resyncs, verdict.excused) == (1, 2)


def test_recovered_false_does_not_cover_publications_after_its_position() -> None:
    entries = [began(), *got(1), Dropped(1.5, None), Subscribed(3.5, at(2), False), *got(4)]
    assert faults(verdict_of(acked(1, 2, 3, 4), *entries)) == (1, 0, 0, 1)


def test_a_gap_excuses_a_former_epoch() -> None:
    published = [*acked(1, 2, 3), *acked(4, 5, epoch=B, first_offset=1)]
    entries = [began(), *got(1), Gap(4.15, at(1, B)), *got(5, epoch=B, shift=-3)]
    verdict = verdict_of(published, *entries)
    assert verdict.is_whole and (verdict.resyncs, verdict.excused) == (1, 3)


def test_another_epoch_without_a_notice_is_a_hole() -> None:
    published = [*acked(1), *acked(2, epoch=B, first_offset=1)]
    assert faults(verdict_of(published, began(), *got(1), *got(2, epoch=B, shift=-1))) == (0, 0, 0, 1)


def test_a_gap_does_not_cover_later_publications() -> None:
    verdict = verdict_of(acked(1, 2), began(), Gap(1.5, at(5)))
    assert (verdict.lost, verdict.excused) == (1, 1)


def test_offsets_used_again_by_another_line_and_dropped_are_lost() -> None:
    # a lagging replica has 1 and 2; the client has 3 and 4 of the lost history; 5 and 6 are 3' and 4'
    published = [*acked(1, 2, 3, 4), *acked(5, 6, line="b", first_offset=3), *acked(7, line="b", first_offset=5)]
    deaf = verdict_of(published, began(), *got(1, 2, 3, 4), *got(7, line="b", shift=-2))
    assert faults(deaf) == (2, 0, 0, 0)
    notice = Gap(6.5, at(4, line="b"))
    honest = verdict_of(published, began(), *got(1, 2, 3, 4), notice, *got(7, line="b", shift=-2))
    assert honest.is_whole and honest.excused == 2


def test_losses_of_redis_are_no_fault_only_if_reported() -> None:
    published = [*acked(1, 2, 3), *acked(4, line="b", first_offset=2)]  # 2 and 3 were never replicated
    gone = {at(2), at(3)}
    told = [began(), *got(1, 2), Gap(3.5, at(1)), *got(4, line="b", shift=-2)]
    assert verdict_of(published, *told).lost == 1
    assert judge(published, [], [Journal("a", "c", told)], vanished=gone).is_whole
    untold = [began(), *got(1), *got(4, line="b", shift=-2)]
    assert judge(published, [], [Journal("a", "c", untold)], vanished=gone).lost == 2


def test_the_same_position_twice_is_a_duplicate_once() -> None:
    assert faults(verdict_of(acked(1, 2), began(), *got(1, 2), *got(2))) == (0, 1, 0, 0)


def test_a_replay_that_overlaps_received_messages_is_a_duplicate() -> None:
    entries = [began(), *got(1, 2), Dropped(2.5, None), Subscribed(2.9, at(2), True), Received(2.9, 2, at(2), True)]
    assert faults(verdict_of(acked(1, 2), *entries)) == (0, 1, 0, 0)


def test_one_number_stored_twice_is_a_duplicate_unless_keys_were_lost() -> None:
    entries = [began(), *got(1), Received(1.3, 1, at(2))]
    assert faults(verdict_of(acked(1), *entries)) == (0, 1, 0, 0)
    assert verdict_of(acked(1), *entries, allows_repeats=True).is_whole


def test_a_later_message_first_is_out_of_order() -> None:
    verdict = verdict_of(acked(1, 2, 3), began(), *got(1, 3, 2))
    assert verdict.out_of_order == 2 and verdict.holes == 1  # by offset and by number


def test_out_of_order_is_seen_without_positions() -> None:
    bare = [Received(3.0, n) for n in (1, 3, 2)]
    published = [Acked("c", n, float(n), n + 0.1) for n in (1, 2, 3)]
    entries = [Subscribed(0.5, None, False), *bare]
    assert faults(verdict_of(published, *entries, keeps_history=False)) == (0, 0, 1, 0)


def test_an_uncertain_publication_may_arrive_late_or_never_but_only_once() -> None:
    unsure = [Uncertain("c", 2, 2.0, 2.5, "timed out")]
    bare = [Acked("c", n, float(n), n + 0.1) for n in (1, 3)]
    late = [began(), Received(1.2, 1, at(1)), Received(3.2, 3, at(2)), Received(3.3, 2, at(3))]
    assert verdict_of(bare, *late, uncertain=unsure).is_whole
    assert verdict_of(bare, *late[:3], uncertain=unsure).is_whole
    assert verdict_of(bare, *late, Received(3.4, 2, at(4)), uncertain=unsure).duplicated == 1


def unkept(number: int) -> Uncertain:
    return Uncertain("c", number, float(number), number + 0.1, "not kept", is_unkept=True)


def test_unstored_publications_reported_to_absent_clients_are_no_fault() -> None:
    live = [began(), *got(1), Received(2.2, 2), *got(3, shift=-1)]
    away = [began(), *got(1), Dropped(1.5, None), Subscribed(2.9, at(1), False), *got(3, shift=-1)]
    published = [*acked(1), *acked(3, first_offset=2)]
    for entries in (live, away):
        assert verdict_of(published, *entries, uncertain=[unkept(2)]).is_whole


def test_unstored_publications_without_a_report_are_passed_over() -> None:
    published = [*acked(1), *acked(3, first_offset=2)]
    entries = [began(), *got(1), Dropped(1.5, None), Subscribed(2.5, at(1), True), *got(3, shift=-1)]
    verdict = verdict_of(published, *entries, uncertain=[unkept(2)])
    assert verdict.passed_over == 1 and not verdict.is_whole and faults(verdict) == (0, 0, 0, 0)
    late = verdict_of(published, *entries, Gap(4.0, at(2)), uncertain=[unkept(2)])
    assert late.is_whole and late.told_late_s == pytest.approx(1.5)


def test_without_history_only_publications_while_subscribed_are_required() -> None:
    published = [Acked("c", n, float(n), n + 0.1) for n in range(1, 6)]
    there = [Subscribed(0.5, None, False), Received(1.2, 1), Dropped(2.05, 1006)]
    back = [Subscribed(3.5, None, False), Received(4.2, 4), Received(5.2, 5)]
    assert verdict_of(published, *there, *back, keeps_history=False).is_whole
    assert verdict_of(published, *there, *back[:2], keeps_history=False).lost == 1


def test_a_client_that_never_reconnects_lacks_all_missed_publications() -> None:
    verdict = verdict_of(acked(1, 2, 3), began(), *got(1), Dropped(1.5, 1001))
    assert verdict.lost == 2 and verdict.close_codes == {1001: 1}


def test_one_client_s_loss_is_not_hidden_by_the_others() -> None:
    journals = [Journal("a", "c", [began(), *got(1, 2)]), Journal("b", "c", [began(), *got(1)])]
    assert judge(acked(1, 2), [], journals).lost == 1


def test_delays_leave_replays_out() -> None:
    entries = [began(), *got(1, 2, late_s=0.25), Received(90.0, 3, at(3), True)]
    measured = delays(acked(1, 2, 3), [Journal("a", "c", entries)])
    assert (measured.count, measured.max_s) == (2, pytest.approx(0.25))


def test_healing_ends_when_the_last_client_receives_a_new_message() -> None:
    published = acked(1, 2, 3)
    quick = Journal("a", "c", [began(), *got(1, 2, 3)])
    slow = Journal("b", "c", [began(), *got(1), *got(2, 3, late_s=1.5)])
    assert healed_after_s(published, [quick, slow], 1.5) == pytest.approx(2.0)
    assert healed_after_s(published, [quick, Journal("c", "c", [began(), *got(1)])], 1.5) == float("inf")
