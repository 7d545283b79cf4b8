"""The publications of one call over all attempts: which to send again, when, and when to give up. Pure.

Rules:
- There are no attempts after the deadline, or so late that the reply has no time: it would be unknown whether Redis
  accepted what it had only refused until then. The delays between attempts are random, below a bound that doubles (full
  jitter).
- A publication keeps its key over all attempts, so the Redis function accepts it once.
- A publication with a reply is not sent again; the others are sent again in their order.
"""

import random
from collections.abc import Callable, Iterable
from typing import Final

from snorky.client.errors import PublishError, PublishManyError
from snorky.client.publication import Sending
from snorky.client.receipt import Receipt

__all__ = ["Batch"]

BACKOFF_FIRST_S: Final = 0.05
BACKOFF_MAX_S: Final = 1.0
ATTEMPT_MIN_S: Final = 0.05  # a later attempt needs this time before the deadline
FUNCTION_WAIT_S: Final = 1.0  # nodes load the function within this time after a Redis started empty


class Batch:
    """Tracks publications until their receipts. begun_s, deadline_s, now_s: of the same monotonic clock."""

    def __init__(
        self,
        publications: Iterable[Sending],
        *,
        deadline_s: float,
        begun_s: float,
        is_plain_allowed: bool = False,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.publications = list(publications)
        self.deadline_s = deadline_s
        self._function_until_s = min(deadline_s, begun_s + FUNCTION_WAIT_S)
        self._is_plain_allowed = is_plain_allowed
        self._uniform = uniform
        self._failures = 0

    @property
    def pending(self) -> list[Sending]:
        """The publications that another attempt would send, in order."""
        return [each for each in self.publications if self._is_pending(each)]

    def wait_s(self, now_s: float) -> float | None:
        """Return the delay before the next attempt; None = no further attempt: `receipts` has the outcome."""
        pending = self.pending
        if not pending:
            return None
        lacking = [each for each in pending if each.refusal is not None and each.refusal.code == "no_function"]
        plain = [each for each in lacking if self._is_plain_allowed and not each.requires_history]
        if plain:
            for each in plain:
                each.is_plain = True
            return 0.0
        if any(each.refusal is not None and each.refusal.is_single for each in pending):
            return 0.0 if now_s + ATTEMPT_MIN_S < self.deadline_s else None  # at most once for each publication
        until_s = self._function_until_s if lacking else self.deadline_s
        self._failures += 1
        bound_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(self._failures, 10))
        wait_s = self._uniform(0, bound_s)
        return wait_s if now_s + wait_s < until_s and self.has_time(now_s + wait_s) else None

    def has_time(self, now_s: float) -> bool:
        """Return True if the next attempt can begin: the delay before it may have taken longer than planned."""
        return self._failures == 0 or now_s + ATTEMPT_MIN_S < self.deadline_s

    def receipts(self) -> list[Receipt]:
        """Return the receipts of all publications. Raises PublishManyError: some have none."""
        receipts = [each.receipt for each in self.publications]
        errors = {number: self.publications[number].error() for number, each in enumerate(receipts) if each is None}
        if errors:
            raise PublishManyError(receipts, errors)
        return [each for each in receipts if each is not None]

    def receipt(self) -> Receipt:
        """Return the receipt of the only publication. Raises PublishError: it has none."""
        (publication,) = self.publications
        if publication.receipt is None:
            error: PublishError = publication.error()
            raise error
        return publication.receipt

    def _is_pending(self, publication: Sending) -> bool:
        if publication.receipt is not None:
            return False
        return publication.refusal is None or publication.refusal.is_passing
