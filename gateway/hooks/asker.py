"""Asker: asks one hook of the backend, and bounds what that costs the node, the backend and the clients.

    question -> cache -> a request in progress for the same question -> breaker -> a free place -> request

Rules:
- Two questions are the same if their bodies are: the identity, its claims and everything else count.
- At most `concurrency` requests are in progress, and `queue_max` questions wait, with BODIES_MAX_BYTES in all. Others
  are refused at once, also with on_failure = "open": otherwise a flood would open what the backend guards.
- A question waits `timeout_s` for its request to begin, and the request `timeout_s` for its answer. While many clients
  connect, the event loop itself may be late by seconds: that does not count as the backend's time (`_in_time`).
- Only a usable answer is cached. Every other result is a failure, and refuses the client unless on_failure is "open".
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from snorky.gateway.config.hooks import Hook
from snorky.gateway.contracts.hooks import Answer, Question
from snorky.gateway.errors import HookRefused, HookUnavailable
from snorky.gateway.hooks.answer_cache import AnswerCache
from snorky.gateway.hooks.answers import CallFailed, Verdict, read_verdict
from snorky.gateway.hooks.breaker import Breaker
from snorky.gateway.hooks.lines import Lines
from snorky.gateway.metrics import Metrics

__all__ = ["Asker", "Post"]

# Sends one request; returns status and body of the answer. Raises CallFailed. Retries and timeouts are its caller's.
Post = Callable[[str, bytes], Coroutine[Any, Any, tuple[int, bytes]]]


SLICES: Final = 8  # of a timeout
BODIES_MAX_BYTES: Final = 33_554_432  # of all requests that wait or are in progress; a single one may be larger

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Unanswered:
    """Why there is no answer: "failed" or "busy"."""

    outcome: str


_Flight = asyncio.Task[Verdict | _Unanswered]
_FAILED: Final = _Unanswered("failed")
_BUSY: Final = _Unanswered("busy")


class Asker:
    """One per hook. post: sends a request to a URL. clock: monotonic seconds; wall_clock: of tokens and revocations."""

    def __init__(
        self,
        operation: str,
        hook: Hook,
        post: Post,
        metrics: Metrics,
        *,
        clock: Callable[[], float] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._operation = operation
        self._hook = hook
        self._post = post
        self._clock = clock or asyncio.get_running_loop().time
        self._wall_clock = wall_clock
        self._cache = AnswerCache(self._clock)
        self._breaker = Breaker(self._clock)
        self._lines = Lines(operation, self._clock)
        self._places = asyncio.Semaphore(hook.concurrency)
        self._flights: dict[bytes, _Flight] = {}  # waiting and in progress
        self._requests = 0  # in progress
        self._bodies_bytes = 0  # of all flights
        self._outcomes = metrics.hook_calls
        self._durations = metrics.hook_duration.labels(operation)
        metrics.hook_requests.labels(operation).set_function(lambda: self._requests)
        metrics.hook_waiting.labels(operation).set_function(lambda: len(self._flights) - self._requests)

    async def ask(self, question: Question, body: bytes) -> Answer:
        """Ask, or use an answer that is known. body: of the request. Raises HookRefused, HookUnavailable."""
        key = hashlib.sha256(body).digest()
        if question.is_fresh and (earlier := self._flights.get(key)) is not None:
            await asyncio.wait((earlier,))  # its request may have been sent before the backend changed its mind
        found: Verdict | _Unanswered | None = None if question.is_fresh else self._cache.get(key)
        is_cached = found is not None
        if found is None:
            flight = self._flights.get(key) or self._start(question, key, body)
            # a client may go while others need the answer
            found = flight if isinstance(flight, _Unanswered) else await asyncio.shield(flight)
        return self._settle(question, found, is_cached=is_cached)

    def count_unaskable(self, detail: str) -> HookUnavailable:
        """Count a question that cannot be sent, and return the error. detail: for the log."""
        self._lines.failed("question", detail)
        self._outcomes.labels(self._operation, "failed").inc()
        return HookUnavailable("hook_failed")

    async def stop(self) -> None:
        """Cancel all requests. Idempotent."""
        flights = tuple(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    def _settle(self, question: Question, found: Verdict | _Unanswered, *, is_cached: bool) -> Answer:
        """Count the result; return or raise it."""
        if isinstance(found, _Unanswered):
            self._outcomes.labels(self._operation, found.outcome).inc()
            if found is _FAILED and self._hook.on_failure == "open":
                return Answer(asked_at_s=self._wall_clock())
            raise HookUnavailable(f"hook_{found.outcome}")
        outcome = "cached" if is_cached else "refused" if found.allowed is None else "ok"
        self._outcomes.labels(self._operation, outcome).inc()
        if found.allowed is None:
            self._lines.refused(question.identity, question.address, found.reason)
            raise HookRefused
        return found.allowed

    def _start(self, question: Question, key: bytes, body: bytes) -> "_Flight | _Unanswered":
        """Begin a request, or make it wait for a place; or say why not, at once."""
        if self._breaker.refuses:
            return _FAILED
        is_heavy = bool(self._flights) and self._bodies_bytes + len(body) > BODIES_MAX_BYTES
        if is_heavy or len(self._flights) >= self._hook.concurrency + self._hook.queue_max:
            self._lines.failed("busy", "")
            return _BUSY
        flight = asyncio.get_running_loop().create_task(self._fly(question, key, body), name="hook")
        self._flights[key] = flight
        self._bodies_bytes += len(body)
        flight.add_done_callback(lambda _: self._landed(key, len(body)))
        return flight

    async def _fly(self, question: Question, key: bytes, body: bytes) -> Verdict | _Unanswered:
        try:
            async with asyncio.timeout(self._hook.timeout_s):
                await self._places.acquire()
        except TimeoutError:
            self._lines.failed("busy", "")
            return _BUSY
        try:
            return await self._call(question, key, body)
        finally:
            self._places.release()

    def _landed(self, key: bytes, size: int) -> None:
        del self._flights[key]
        self._bodies_bytes -= size

    async def _call(self, question: Question, key: bytes, body: bytes) -> Verdict | _Unanswered:
        if not self._breaker.take():  # it may have failed while this question waited
            return _FAILED
        asked_at_s, began_s = self._wall_clock(), self._clock()
        self._requests += 1
        try:
            status, answer = await _in_time(self._post(self._hook.url, body), self._hook.timeout_s)
            verdict = read_verdict(question, status, answer, asked_at_s=asked_at_s)
        except TimeoutError:
            return self._fail("timeout", "")
        except CallFailed as error:
            return self._fail(error.kind, error.detail)
        except asyncio.CancelledError:
            self._breaker.gave_up()
            raise
        except Exception as error:  # the top of a task: whatever it is, the client is refused
            return self._fail("error", type(error).__name__)
        finally:
            self._requests -= 1
            self._durations.observe(self._clock() - began_s)
        self._breaker.succeeded()
        for_s = self._hook.cache_s
        if verdict.allowed is not None:  # an answer is not used after the identity's end
            for_s = min(for_s, verdict.allowed.expires_at_s - self._wall_clock())
        self._cache.put(key, verdict, answer_bytes=len(answer), for_s=for_s)
        return verdict

    def _fail(self, kind: str, detail: str) -> _Unanswered:
        self._breaker.failed()
        self._lines.failed(kind, detail)
        return _FAILED


async def _in_time(sending: Coroutine[Any, Any, _T], timeout_s: float) -> _T:
    """Await a request for SLICES slices of its timeout. Raises TimeoutError.

    A slice that the event loop ends late counts as one slice: the answer may have arrived, and is read next.
    """
    task = asyncio.get_running_loop().create_task(sending, name="hook request")
    try:
        for _ in range(SLICES):
            await asyncio.wait((task,), timeout=timeout_s / SLICES)
            if task.done():
                return task.result()
        raise TimeoutError
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
