"""The words of the `allow_...` settings: which clients may do something.

allow_subscribe = "owner"
allow_publish = ["owner", "token"]      one of them suffices

anyone          every client, also without an identity
authenticated   clients with an identity
owner           clients to which the placeholders of the rule's pattern apply
subscriber      clients that are subscribed to the channel
token           clients whose token permits it: by its claims, or a subscription token
nobody          no client
"""

from collections.abc import Iterator
from typing import Final, Literal, TypeAlias, get_args

from snorky.gateway.config.rules.patterns import Pattern

__all__ = ["WORD_LIST", "Word", "Words", "problems_of"]

Word = Literal["anyone", "authenticated", "owner", "subscriber", "token", "nobody"]
Words: TypeAlias = Word | tuple[Word, ...] | None  # None: not written
WORD_LIST: Final = ", ".join(get_args(Word))


def problems_of(operation: str, words: Words, pattern: Pattern) -> Iterator[str]:
    """Yield one text for each contradiction, with the remedy. operation: `allow_OPERATION` has these words."""
    key, each = f"allow_{operation}", (words,) if isinstance(words, str) else words
    if each is None:
        return
    if not each:
        yield f'{key} is an empty list: write {key} = "nobody"'
    if len(each) > 1 and ("nobody" in each or "anyone" in each):
        yield f'{key}: "anyone" and "nobody" stand alone: write one of them, or the other words'
    if "owner" in each and not pattern.sources:
        yield f'{key} = "owner" needs a placeholder in match, as in match = "user:{{identity}}"'
    if "subscriber" in each and operation in ("subscribe", "join", "register", "acquire"):
        yield f'{key}: no client is a subscriber before that: use other words than "subscriber"'
