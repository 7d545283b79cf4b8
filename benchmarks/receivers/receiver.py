"""The receiving side: receiver.c if there is a compiler, otherwise the same in Python."""

import sys
from typing import Self

from benchmarks.support.child import Child, ChildFailed
from benchmarks.support.compiler import compiled
from benchmarks.support.message import PATH

__all__ = ["Receiver"]


class Receiver(Child):
    """Many client connections in one process. Once made, all are open and have the reply to `send`.

    path: of the URL. send: text, or bytes of a binary frame, that every connection sends first. replies: data frames
    until it is subscribed. sample: the latencies of one connection out of this many are recorded. nap_us: poll at this
    interval, instead of being woken by every send(). Uses as many source addresses as the ports need, 28,000 each.
    Raises ChildFailed: connecting failed or took more than timeout_s.
    """

    def __init__(
        self,
        port: int,
        connections: int,
        *,
        cpu: int | None = None,
        is_raw: bool = False,
        path: str = PATH,
        send: str | bytes | None = None,
        replies: int = 1,
        sample: int = 0,
        nap_us: int = 0,
        timeout_s: float = 120.0,
    ) -> None:
        program = compiled("receivers/receiver")
        argv = [str(program)] if program else [sys.executable, "-m", "benchmarks.receivers.python_receiver"]
        argv += ["--port", str(port), "--connections", str(connections), "--path", path, "--sample", str(sample)]
        argv += ["--replies", str(replies), "--sources", str(1 + connections // 20_000)]
        if program is not None:
            argv += ["--nap-us", str(nap_us)]
        if is_raw:
            argv.append("--raw")
        if send is not None:
            argv += ["--send", send] if isinstance(send, str) else ["--send-hex", send.hex()]
        super().__init__(argv, cpu=cpu)
        try:
            self.connect_s = self.answer(timeout_s)["elapsed_s"]
        except ChildFailed:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def mark(self) -> None:
        """Count from zero again."""
        self.ask("mark")

    def wait(self, messages: int, timeout_s: float = 60.0) -> dict[str, float]:
        """Return the counts when `messages` have come since the mark. Raises ChildFailed: another number came."""
        counts = self.ask(f"wait {messages} {timeout_s * 1000:.0f}", timeout_s + 30)
        if counts["messages"] != messages or counts["closed"]:
            raise ChildFailed(f"expected {messages} messages: {counts}")
        return counts
