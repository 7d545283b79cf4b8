"""Library instance: one loading of the library `snorky` into one server, as `snorky_library` tells it. Pure.

Rules:
- An instance is known by the run of its server, by when its function was first called, and by its salt. All three stay
  until the library is loaded again, by anybody. So an instance that a node sees twice was there all the time between.
- Every library that a node loads has a salt of its own, and the node calls the function at once. An instance with the
  salt of an earlier one, or one that was written long before its first call, is an old copy that somebody restored.
- A *doubt* names a time in which another library may have published without keeping. The library that ends this time
  contains it: whoever finds this library finds the doubt. Later libraries keep it until it ends.
"""

from dataclasses import dataclass
from typing import Final

__all__ = ["NO_DOUBT", "Doubt", "Instance"]

FRESH_US: Final = (
    10_000_000  # between a node's look at the clock and the first call; a node that is slower causes a gap
)
STEP_US: Final = 1_000_000  # by which a clock may go back meanwhile


@dataclass(frozen=True, slots=True, order=True)
class Doubt:
    """until_us: when it ends, by the clock of Redis; a later doubt ends later. mark: its name."""

    until_us: int
    mark: str


NO_DOUBT: Final = Doubt(0, "")


@dataclass(frozen=True, slots=True)
class Instance:
    """One loading. run: of the server. born_us: the first call. loaded_us: when a node wrote it, or later."""

    run: str
    born_us: int
    salt: str
    loaded_us: int
    doubt: Doubt

    @classmethod
    def parse(cls, answer: object) -> "Instance | None":
        """Read the answer of snorky_library; None = it is none."""
        words = answer.decode(errors="replace").split(" ") if isinstance(answer, bytes) else []
        if len(words) < 7 or not all(words[at].isdecimal() for at in (0, 2, 4, 5)):
            return None
        doubt = Doubt(int(words[5]), words[6]) if words[5] != "0" else NO_DOUBT
        return cls(words[1], int(words[2]), words[3], int(words[4]), doubt)

    def is_same(self, other: "Instance | None") -> bool:
        """True if the library was not loaded again in between."""
        return other is not None and self._identity == other._identity

    def may_follow(self, other: "Instance | None") -> bool:
        """True if a node loaded it, so that its doubt covers all since `other`. None = nothing is known of before."""
        if other is None or self.is_same(other):
            return True
        return self.salt != other.salt and -STEP_US <= self.born_us - self.loaded_us <= FRESH_US

    @property
    def _identity(self) -> tuple[str, int, str]:
        return self.run, self.born_us, self.salt
