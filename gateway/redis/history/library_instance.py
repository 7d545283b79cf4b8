"""Library instance: one loading of the library `snorky` into one server, as `snorky_library` reports it. Pure.

Rules:
- An instance is identified by the run of its server (Redis' run_id), the time of the first call of its function, and
  its salt. They do not change until the library is loaded again, by any client. So an instance that a node sees twice
  was loaded all the time between.
- Every library that a node loads has a new salt, and the node calls the function at once. An instance with the salt of
  an earlier one, or one that was written long before its first call, is an old copy that was restored.
- A *doubt* marks a period in which another library may have published without adding to the history. The library loaded
  at the end of the period contains the doubt; later libraries keep it until it expires.
"""

from dataclasses import dataclass
from typing import Final

__all__ = ["NO_DOUBT", "Doubt", "Instance"]

FRESH_US: Final = (
    10_000_000  # between reading Redis' clock and the first call; a slower node causes a gap in the history
)
STEP_US: Final = 1_000_000  # by how much the clock may be set back meanwhile


@dataclass(frozen=True, slots=True, order=True)
class Doubt:
    """A period of doubt. until_us: when it expires, by Redis' clock; later doubts expire later. mark: its name."""

    until_us: int
    mark: str


NO_DOUBT: Final = Doubt(0, "")


@dataclass(frozen=True, slots=True)
class Instance:
    """One loading. run: of the server. born_us: time of the first call. loaded_us: when a node wrote the library."""

    run: str
    born_us: int
    salt: str
    loaded_us: int
    doubt: Doubt

    @classmethod
    def parse(cls, answer: object) -> "Instance | None":
        """Decode the answer of snorky_library; None = not a valid answer."""
        words = answer.decode(errors="replace").split(" ") if isinstance(answer, bytes) else []
        if len(words) < 7 or not all(words[at].isdecimal() for at in (0, 2, 4, 5)):
            return None
        doubt = Doubt(int(words[5]), words[6]) if words[5] != "0" else NO_DOUBT
        return cls(words[1], int(words[2]), words[3], int(words[4]), doubt)

    def is_same(self, other: "Instance | None") -> bool:
        """True if the library was not loaded again in between."""
        return other is not None and self._identity == other._identity

    def may_follow(self, other: "Instance | None") -> bool:
        """True if a node loaded it, so that its doubt covers all time since `other`. None = no earlier one is known."""
        if other is None or self.is_same(other):
            return True
        return self.salt != other.salt and -STEP_US <= self.born_us - self.loaded_us <= FRESH_US

    @property
    def _identity(self) -> tuple[str, int, str]:
        return self.run, self.born_us, self.salt
