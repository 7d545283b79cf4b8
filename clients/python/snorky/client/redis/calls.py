"""The commands of one attempt: one for all its publications to one channel, in bounded parts. Pure.

Rules:
- A command is executed completely or not at all. Each publication has its own key, so it is published once even if it
  was in another command before.
- Publications to one channel stay in order; those to different channels may change places.
- A plain PUBLISH is a command of its own, and so is a publication of which a call with several was refused.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from snorky.client.publication import Refusal, Sending

__all__ = ["Call", "calls_of", "pipelines"]

CALL_MAX: Final = 64  # publications; the function takes no more
CALL_MAX_BYTES: Final = 262_144  # of payloads, or one larger payload; Redis executes nothing else meanwhile
PIPELINE_MAX: Final = 500  # publications in flight at once; Redis executes each in some 20 us
PIPELINE_MAX_BYTES: Final = 4_194_304  # of payloads, or one call


class Call:
    """Publications to one channel that one command publishes."""

    def __init__(self, first: Sending) -> None:
        self.publications = [first]
        self.size = len(first.payload)  # bytes of all payloads

    def takes(self, publication: Sending) -> bool:
        """True if there is room for one more publication to the same channel."""
        if self.publications[0].is_alone or publication.is_alone:
            return False
        return len(self.publications) < CALL_MAX and self.size + len(publication.payload) <= CALL_MAX_BYTES

    def add(self, publication: Sending) -> None:
        """Append one publication."""
        self.publications.append(publication)
        self.size += len(publication.payload)

    def command(self) -> tuple[str | bytes, ...]:
        """Return the command that publishes."""
        first, *further = self.publications
        return (*first.command(), *(word for each in further for word in (each.payload, each.key)))

    def count_commands(self) -> tuple[tuple[str, ...], ...]:
        """Return the commands that count the channel's subscribers."""
        return self.publications[0].count_commands()

    def take(self, reply: object, counted: Sequence[object] = ()) -> None:
        """Record Redis' reply for each publication. counted: its replies to `count_commands`."""
        if len(self.publications) == 1:
            replies: list[Any] = [reply]
        elif isinstance(reply, list) and len(reply) == len(self.publications):
            replies = reply
        else:
            replies = [None] * len(self.publications)  # each of them is then an invalid reply
        for publication, each in zip(self.publications, replies, strict=True):
            publication.take(each, counted)

    def refuse(self, refusal: Refusal) -> None:
        """Record that Redis refused the command, and published none of them."""
        if len(self.publications) > 1:
            refusal = refusal.of_several()
        for publication in self.publications:
            publication.refuse(refusal)


def calls_of(publications: Iterable[Sending]) -> list[Call]:
    """Divide the publications of one Redis into calls."""
    calls: list[Call] = []
    last: dict[str, Call] = {}  # by channel: the one that may have room
    for publication in publications:
        call = last.get(publication.name)
        if call is not None and call.takes(publication):
            call.add(publication)
        else:
            call = last[publication.name] = Call(publication)
            calls.append(call)
    return calls


def pipelines(calls: Iterable[Call]) -> Iterator[list[Call]]:
    """Divide calls into parts that are sent at once."""
    part: list[Call] = []
    count = size = 0
    for call in calls:
        if part and (count + len(call.publications) > PIPELINE_MAX or size + call.size > PIPELINE_MAX_BYTES):
            yield part
            part, count, size = [], 0, 0
        part.append(call)
        count, size = count + len(call.publications), size + call.size
    if part:
        yield part
