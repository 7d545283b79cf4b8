"""Which load of the function library a server has, and whether a node can have loaded it."""

import pytest

from snorky.gateway.redis.history.library_instance import NO_DOUBT, Doubt, Instance

KNOWN = b"3 a1 1000000000 salt1 999000000 0 -"
S = 1_000_000


def parse(answer: object) -> Instance:
    instance = Instance.parse(answer)
    assert instance is not None
    return instance


def test_an_answer_of_a_later_format_is_read_as_ours() -> None:
    assert parse(KNOWN) == Instance("a1", 1000 * S, "salt1", 999 * S, NO_DOUBT)
    assert parse(b"4 a1 5 salt 4 17 mark and more") == Instance("a1", 5, "salt", 4, Doubt(17, "mark"))


@pytest.mark.parametrize(
    "answer", [None, 1, b"", b"OK", b"3 a1 x salt 4 0 -", b"3 a1 5 salt 4 0", b"x a1 5 salt 4 0 -"]
)
def test_an_answer_of_something_else_is_none(answer: object) -> None:
    assert Instance.parse(answer) is None


def test_a_library_that_a_node_loaded_may_follow() -> None:
    known = parse(KNOWN)
    assert known.may_follow(None) and known.may_follow(known)
    later = parse(b"3 a1 2000000000 salt2 1999000000 0 -")
    assert later.may_follow(known) and not later.is_same(known)
    assert parse(b"3 a1 2000000000 salt2 2000500000 0 -").may_follow(known), "a clock that was set back a little"


def test_an_old_copy_that_was_restored_may_not_follow() -> None:
    known = parse(KNOWN)
    assert not parse(b"3 a1 2000000000 salt1 1999000000 0 -").may_follow(known), "the same salt, loaded again"
    assert not parse(b"3 a1 2000000000 salt0 500000000 0 -").may_follow(known), "written long before"


def test_a_later_doubt_is_the_greater_one() -> None:
    assert NO_DOUBT < Doubt(1, "b") < Doubt(2, "a")
