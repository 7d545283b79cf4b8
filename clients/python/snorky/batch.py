"""The publications of one call, over all attempts: what is left to send, when to try again, and when to give up. Pure.

Rules:
- Attempts end with the deadline; the waits between them are random under a bound that doubles (full jitter).
- Each publication keeps its key over all attempts, so that the function takes it once.
- What was answered is not sent again; what is sent again keeps its order.
"""

import random
from collections.abc import Callable, Iterable
from typing import Final

from snorky.errors import PublishError, PublishManyError
from snorky.publication import Receipt, Sending

__all__ = ["Batch"]

BACKOFF_FIRST_S: Final = 0.05
BACKOFF_MAX_S: Final = 1.0
FUNCTION_WAIT_S: Final = 1.0  # nodes load the function within that when a Redis has come up empty


class Batch:
    """Follows publications to their receipts. now_s and deadline_s: of one monotonic clock."""

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
        """What another attempt would send, in order."""
        return [each for each in self.publications if self._is_pending(each)]

    def wait_s(self, now_s: float) -> float | None:
        """Tell how long to wait before the next attempt; None = there is none: `result` tells the outcome."""
        pending = self.pending
        if not pending:
            return None
        lacking = [each for each in pending if each.refusal is not None and each.refusal.code == "no_function"]
        plain = [each for each in lacking if self._is_plain_allowed and not each.requires_history]
        if plain:
            for each in plain:
                each.is_plain = True
            return 0.0
        until_s = self._function_until_s if lacking else self.deadline_s
        self._failures += 1
        bound_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(self._failures, 10))
        wait_s = self._uniform(0, bound_s)
        return wait_s if now_s + wait_s < until_s else None

    def receipts(self) -> list[Receipt]:
        """Give the receipts of all. Raises PublishManyError: not all have one."""
        receipts = [each.receipt for each in self.publications]
        errors = {number: self.publications[number].error() for number, each in enumerate(receipts) if each is None}
        if errors:
            raise PublishManyError(receipts, errors)
        return [each for each in receipts if each is not None]

    def receipt(self) -> Receipt:
        """Give the receipt of the only one. Raises PublishError: it has none."""
        (publication,) = self.publications
        if publication.receipt is None:
            error: PublishError = publication.error()
            raise error
        return publication.receipt

    def _is_pending(self, publication: Sending) -> bool:
        if publication.receipt is not None:
            return False
        return publication.refusal is None or publication.refusal.is_passing
