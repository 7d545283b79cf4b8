"""Position: the place of a message in its channel's history."""

from dataclasses import dataclass

__all__ = ["Position"]


@dataclass(frozen=True, slots=True)
class Position:
    """EPOCH:OFFSET:TAG, the form of `str`. Offsets increase by one within an epoch; the tag is random."""

    epoch: str
    offset: int
    tag: str

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}:{self.tag}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Parse the form of `str`. Raises ValueError."""
        epoch, _, rest = text.partition(":")
        offset, _, tag = rest.partition(":")
        if not (offset.isascii() and offset.isdigit() and epoch and tag):
            raise ValueError("not a position")
        return cls(epoch, int(offset), tag)
