"""Replacement of queued messages by newer ones about the same subject."""

from hypothesis import given, settings
from hypothesis import strategies as st

from snorky.gateway.connection.newest import SUBJECTS_MAX, Newest

SUBJECTS = st.sampled_from([None, b"a", b"b", b"c"])


@settings(report_multiple_bugs=False)
@given(st.lists(SUBJECTS, max_size=200))
def test_the_newest_of_each_subject_is_left_in_the_order_of_publication(subjects: list[bytes | None]) -> None:
    newest, outbox, expected = Newest(), list[bytes](), list[tuple[bytes | None, bytes]]()
    for number, subject in enumerate(subjects):
        message = b"%d " % number
        if subject is None:
            outbox.append(message)
        else:
            old = [data for each, data in expected if each == subject]
            expected = [(each, data) for each, data in expected if each != subject]
            assert newest.put(outbox, subject, message) == sum(map(len, old))
        expected.append((subject, message))
        assert b"".join(outbox) == b"".join(data for _, data in expected)
        assert len(outbox) <= 2 * len(expected) + 1


def test_subjects_above_a_bound_are_queued_like_any_other_message() -> None:
    newest, outbox = Newest(), list[bytes]()
    for number in (*range(SUBJECTS_MAX + 1), 0, SUBJECTS_MAX):
        newest.put(outbox, b"%d" % number, b"%d " % number)
    assert b"".join(outbox).split() == [b"%d" % number for number in (*range(1, SUBJECTS_MAX + 1), 0, SUBJECTS_MAX)]
