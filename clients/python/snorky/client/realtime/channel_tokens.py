"""Subscription tokens: fetched before each `subscribe`, and replaced by `refreshSubscription` before they expire. Pure.

Rules:
- Each topic has at most one job per line (connection): it fetches a token, or waits until the token must be refreshed,
  or waits for the reply to a refresh. A job that was stopped has no effect.
- Each `subscribe` has a new token: an earlier one may have expired. A fixed text is the only token, and is never
  refreshed.
- A function of the program that fails is called again, after delays that grow, and at least `RETRY_MIN_S` after the
  call before. A token that the gateway refuses in a refresh counts as a failure: the present token remains valid.
- A topic ends if the function returns None, or something that is no token.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from snorky.client.clock import Clock
from snorky.client.errors import SnorkyError
from snorky.client.realtime.channel_token import RETRY_MIN_S, UnusableToken

if TYPE_CHECKING:
    from snorky.client.realtime.line import Done, Line
    from snorky.client.realtime.topic import Topic

__all__ = ["ChannelTokens"]

REFRESH_AT: Final = (0.65, 0.8)  # random part of the lifetime, so that clients spread out; the rest is for retries


class _Job:
    """A call or a timer for the token of a topic on one line."""

    def __init__(self, began_at_s: float) -> None:
        self.began_at_s = began_at_s
        self.cancel: Callable[[], None] = lambda: None


class ChannelTokens:
    """Gets and refreshes the tokens of topics on lines.

    call(line, topic, command, params, done): sends a request. on_refused(topic, error): the topic must end.
    on_lost(line, topic): the gateway says that the line is not subscribed.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        call: "Callable[[Line, Topic, str, dict[str, Any], Done], None]",
        uniform: Callable[[float, float], float],
        on_refused: "Callable[[Topic, Exception], None]",
        on_lost: "Callable[[Line, Topic], None]",
    ) -> None:
        self._clock = clock
        self._call = call
        self._uniform = uniform
        self._on_refused = on_refused
        self._on_lost = on_lost
        self._jobs: dict[tuple[Line, Topic], _Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def get(self, line: "Line", topic: "Topic", use: Callable[[str], None], *, delay_s: float = 0.0) -> None:
        """Get a token, after a delay, and pass it to `use`. Tries again after failures, until it is stopped."""
        token = topic.token
        if token is None:
            return
        ask = token.ask
        job = self._begin(line, topic)

        def attempt() -> None:
            job.began_at_s = self._clock.now_s()
            if ask is None:
                use(token.text or "")
            else:
                job.cancel = ask(done)

        def done(text: str | None, error: Exception | None) -> None:
            if self._jobs.get((line, topic)) is not job:
                return
            if isinstance(error, UnusableToken):
                self._on_refused(topic, error)
            elif error is not None:
                failure = f"the function failed: {type(error).__name__}: {error}"
                job.cancel = self._clock.after(token.fail(topic.channel, failure), attempt)
            elif text is None:
                self._on_refused(topic, SnorkyError("The token function gives no token", "not_authorized"))
            else:
                use(text)

        if delay_s > 0:
            job.cancel = self._clock.after(delay_s, attempt)
        else:
            attempt()

    def renew(self, line: "Line", topic: "Topic", data: Any) -> None:
        """Schedule the refresh. data: the reply to `subscribe` or `refreshSubscription`, with `expiresInS`."""
        token, left_s = topic.token, _expires_in_s(data)
        if token is None or not token.is_renewable or left_s is None or not topic.is_on(line):
            return
        token.succeed(left_s)
        self._refresh_after(line, topic, max(RETRY_MIN_S, left_s * self._uniform(*REFRESH_AT)))

    def pause_s(self, line: "Line", topic: "Topic") -> float:
        """Return how long to wait before a new token is asked for on a line."""
        job = self._jobs.get((line, topic))
        return 0.0 if job is None else max(0.0, job.began_at_s + RETRY_MIN_S - self._clock.now_s())

    def stop(self, line: "Line", topic: "Topic") -> None:
        """Stop the job of a topic on a line. Idempotent."""
        job = self._jobs.pop((line, topic), None)
        if job is not None:
            job.cancel()

    def lose(self, line: "Line") -> None:
        """Stop all jobs of a line, which has ended."""
        for each, topic in list(self._jobs):
            if each is line:
                self.stop(line, topic)

    def close(self) -> None:
        """Stop all jobs."""
        for line, topic in list(self._jobs):
            self.stop(line, topic)

    def _begin(self, line: "Line", topic: "Topic") -> _Job:
        self.stop(line, topic)
        job = self._jobs[line, topic] = _Job(self._clock.now_s())
        return job

    def _refresh_after(self, line: "Line", topic: "Topic", delay_s: float) -> None:
        job = self._begin(line, topic)

        def refresh() -> None:
            if topic.is_on(line):  # not after a move
                self.get(line, topic, lambda text: self._refresh(line, topic, text))
            else:
                self.stop(line, topic)

        job.cancel = self._clock.after(delay_s, refresh)

    def _refresh(self, line: "Line", topic: "Topic", text: str) -> None:
        job = self._begin(line, topic)

        def done(data: Any, error: Exception | None) -> None:
            token = topic.token
            if self._jobs.get((line, topic)) is not job or token is None:
                return
            if error is None:
                self.stop(line, topic)
                self.renew(line, topic, data)
            elif isinstance(error, SnorkyError) and error.code == "not_subscribed":
                self._on_lost(line, topic)
            else:
                after_s = (error.retry_after_ms or 0) / 1000 if isinstance(error, SnorkyError) else 0.0
                delay_s = token.fail(topic.channel, f"not refreshed: {getattr(error, 'code', '')} {error}")
                self._refresh_after(line, topic, max(after_s, delay_s))

        self._call(line, topic, "refreshSubscription", {"channel": topic.channel, "token": text}, done)


def _expires_in_s(data: Any) -> float | None:
    value = data.get("expiresInS") if isinstance(data, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        return None
    return float(value)
