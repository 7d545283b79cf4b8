"""AnswerCache: bounded in entries and bytes."""

import pytest

from snorky.gateway.contracts.hooks import Answer
from snorky.gateway.hooks import answer_cache
from snorky.gateway.hooks.answer_cache import AnswerCache
from snorky.gateway.hooks.answers import Verdict

YES = Verdict(Answer())


def test_entries_are_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_cache, "ENTRIES_MAX", 3)
    cache = AnswerCache(lambda: 0.0)
    for key in b"a", b"b", b"c", b"a", b"d":
        cache.put(key, YES, answer_bytes=10, for_s=1)
    assert [cache.get(key) is not None for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert len(cache) == 3


def test_bytes_are_bounded() -> None:
    cache = AnswerCache(lambda: 0.0)
    for number in range(10_000):
        cache.put(b"%d" % number, YES, answer_bytes=16_384, for_s=1)
        assert cache._bytes <= answer_cache.BYTES_MAX
    assert 200 < len(cache) < 300
    assert cache.get(b"9999") is YES
    for number in range(20_000):
        cache.put(b"%d" % number, YES, answer_bytes=16, for_s=1)
    assert len(cache) == answer_cache.ENTRIES_MAX


def test_old_entries_are_removed_when_they_are_looked_at() -> None:
    now_s = [0.0]
    cache = AnswerCache(lambda: now_s[0])
    cache.put(b"a", YES, answer_bytes=10, for_s=1)
    cache.put(b"b", YES, answer_bytes=10, for_s=0)
    assert cache.get(b"a") is YES and cache.get(b"b") is None
    now_s[0] = 1.0
    assert cache.get(b"a") is None
    assert len(cache) == cache._bytes == 0
