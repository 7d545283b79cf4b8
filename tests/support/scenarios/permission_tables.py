"""The tables under "Who may do what" in docs/permissions.md, and the calls with which clients try it."""

import json
from pathlib import Path
from typing import Any

__all__ = ["BACKEND_SERVICES", "TRANSPORTS", "answer_of", "ask", "by_key", "send", "table"]

PAGE = Path(__file__).resolve().parents[3] / "docs" / "permissions.md"
BACKEND_SERVICES = ["pubsub_backend", "auth_backend", "datasync_backend", "control"]
TRANSPORTS = ["json", "msgpack", "sockjs-websocket", "xhr-streaming"]


def table(*columns: str) -> dict[str, list[str]]:
    """Return the cells of the table with these columns, by the text of the first one. "" = the case cannot occur."""
    head = f"| {' | '.join(columns)} |"
    lines = PAGE.read_text().partition(f"\n{head}\n")[2].splitlines()[1:]
    found = {}
    for line in lines:
        if not line.startswith("|"):
            break
        label, *cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert len(cells) == len(columns) - 1 and label not in found, line
        found[label] = cells
    assert found, f"docs/permissions.md has no table {head}"
    return found


def by_key() -> dict[str, list[str]]:
    """Return the table by the backend's key; its columns are BACKEND_SERVICES."""
    return table("the call comes", *(f"`{service}`" for service in BACKEND_SERVICES))


async def ask(actor: Any, service: str, command: str, **params: Any) -> Any:
    """Send a call, and return the message of its reply. Calls of one client must differ."""
    call_id = await send(actor, service, command, **params)
    await actor.until(lambda: answer_of(actor, call_id) is not None)
    return answer_of(actor, call_id)


async def send(actor: Any, service: str, command: str, **params: Any) -> str:
    """Send a call, and return its ID."""
    call_id = f"{service} {command} {json.dumps(params)}"
    await actor.send({"service": service, "message": {"command": command, "params": params, "callId": call_id}})
    return call_id


def answer_of(actor: Any, call_id: str) -> Any:
    """Return the message of the reply to a call; None if there is none yet."""
    found = [each["message"] for each in actor.inbox if each["message"].get("callId") == call_id]
    return found[-1] if found else None
