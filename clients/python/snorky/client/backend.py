"""SnorkyBackend: calls the commands of a gateway's private services.

backend = SnorkyBackend(SnorkyHTTPTransport("http://127.0.0.1:8003/backend", key="..."))
backend.call("pubsub_backend", "publish", channel="news", message={"title": "Hello"})
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from snorky.client.errors import SnorkyError, TransportError
from snorky.client.http.transport import JSON, JsonModule, SnorkyHTTPTransport, Transport, is_count

__all__ = ["Call", "Reply", "SnorkyBackend", "SnorkyError", "SnorkyHTTPTransport", "TransportError"]

BATCH_MAX: Final = 1000  # calls that a gateway accepts in one request


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a batch."""

    service: str
    command: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of one call of a batch. data: the command's result; None if there is an error."""

    data: Any = None
    error: SnorkyError | None = None

    def result(self) -> Any:
        """Return the command's result. Raises SnorkyError: it refused."""
        if self.error is not None:
            raise self.error
        return self.data


class SnorkyBackend:
    """Calls commands through a transport.

    json: converts values to JSON and back; replace it to support your own types. retry: when a reply was lost, send the
    call again although it may have been executed; only for commands that may be executed twice.
    """

    def __init__(self, transport: Transport, json: JsonModule = JSON, *, retry: bool = False) -> None:
        self.transport = transport
        self.json = json
        self.retry = retry

    def send(self, message: Any) -> Any:
        """Send an envelope unchanged and return the response. Raises TransportError."""
        return self.transport.send(message, json=self.json, retry=self.retry)

    def call(self, service: str, command: str, /, **params: Any) -> Any:
        """Call a command and return its result. Raises SnorkyError: it refused; TransportError: no valid reply."""
        return self._reply(self.send(_envelope(Call(service, command, params)))).result()

    def call_many(self, calls: Iterable[Call]) -> list[Reply]:
        """Make up to 1,000 calls in one request, started in order; return their replies in the same order.

        A refused call does not affect the others. Raises TransportError: no valid reply; ValueError: too many calls.
        """
        envelopes = [_envelope(call) for call in calls]
        if len(envelopes) > BATCH_MAX:
            raise ValueError(f"at most {BATCH_MAX} calls at once")
        if not envelopes:
            return []
        answers = self.send(envelopes)
        if not isinstance(answers, list) or len(answers) != len(envelopes):
            raise _invalid("not one reply for each call")
        return [self._reply(answer) for answer in answers]

    def _reply(self, envelope: Any) -> Reply:
        message = envelope.get("message") if isinstance(envelope, dict) else None
        if not isinstance(message, dict):
            raise _invalid("no message in it")
        match message.get("type"):
            case "response" if "data" in message:
                return Reply(message["data"])
            case "error" if isinstance(text := message.get("message"), str):
                code, retry_after_ms = message.get("code"), message.get("retryAfterMs")
                return Reply(
                    error=SnorkyError(
                        text,
                        code if isinstance(code, str) else "refused",
                        retry_after_ms=retry_after_ms if is_count(retry_after_ms) else None,
                    )
                )
        raise _invalid("neither a response nor an error")


def _envelope(call: Call) -> dict[str, Any]:
    return {"service": call.service, "message": {"command": call.command, "params": dict(call.params)}}


def _invalid(text: str) -> TransportError:
    return TransportError(f"Invalid reply: {text}", "invalid_reply", may_have_happened=True, status=200)
