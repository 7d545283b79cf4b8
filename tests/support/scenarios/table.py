"""The conformance table: all scenarios, and their contents without running them.

Cases that other tests cover are listed in tests.support.scenarios.error_codes.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from tests.support.scenarios.auth_table import AUTH_SCENARIOS
from tests.support.scenarios.conformance import NOTHING, Scenario, Step
from tests.support.scenarios.control_table import CONTROL_SCENARIOS
from tests.support.scenarios.datasync_table import DATASYNC_SCENARIOS
from tests.support.scenarios.envelope_table import ENVELOPE_SCENARIOS
from tests.support.scenarios.history_table import HISTORY_SCENARIOS
from tests.support.scenarios.http_table import HTTP_SCENARIOS
from tests.support.scenarios.protocol_table import SCENARIOS

__all__ = ["DEALERS", "HOUSES", "TABLE", "close_codes", "commands", "notifications", "statuses", "texts"]

TABLE: tuple[Scenario, ...] = (
    *SCENARIOS,
    *DATASYNC_SCENARIOS,
    *ENVELOPE_SCENARIOS,
    *AUTH_SCENARIOS,
    *HTTP_SCENARIOS,
    *HISTORY_SCENARIOS,
    *CONTROL_SCENARIOS,
)
HOUSES = ("open", "required", "keyless")
DEALERS = ("tests.support.scenarios.dealers:PlayersWithColor", "tests.support.scenarios.dealers:Players")


@cache
def _steps() -> tuple[Step, ...]:
    return tuple(step for each in TABLE for step in each.steps())


def commands() -> set[str]:
    """Return every SERVICE.COMMAND that succeeds somewhere."""
    return {step.command for step in _steps() if step.command and step.error is None} | {
        f"{envelope['service']}.{envelope['message']['command']}"
        for envelope in _said()
        if isinstance(envelope, dict) and isinstance(envelope.get("message"), dict) and "command" in envelope["message"]
    }


def texts() -> set[str]:
    """Return all error texts."""
    found = {step.error for step in _steps() if step.error is not None}
    for step in _steps():
        for envelope in (*step.answers, *_listed(step.reply)):
            if isinstance(envelope, dict) and envelope.get("message", {}).get("type") == "error":
                text = envelope["message"]["message"]
                found |= set(text.values()) if isinstance(text, Mapping) else {text}
    return found


def notifications() -> set[tuple[str, ...]]:
    """Return the keys of all notifications, by type."""
    heard = [each for step in _steps() for brought in step.brings.values() for each in brought]
    return {(each["type"], *sorted(each.keys() - {"type"})) for each in heard}


def close_codes() -> set[int]:
    """Return all close codes."""
    return {code for step in _steps() for code in step.closes.values()}


def statuses() -> set[int]:
    """Return all HTTP statuses of the backend's port."""
    return {step.status for step in _steps() if step.posted is not None}


def _said() -> Iterator[Any]:
    return (step.said for step in _steps() if step.said is not NOTHING)


def _listed(reply: Any) -> list[Any]:
    return reply if isinstance(reply, list) else [reply]
