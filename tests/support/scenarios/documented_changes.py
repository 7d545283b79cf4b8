"""Changes that a document tells readers to make in their files: its blocks in `diff`, applied as they are written."""

from collections.abc import Sequence
from pathlib import Path

from tests.support.scenarios.pages import code_block

__all__ = ["apply_change", "changed_lines", "replaced"]


def changed_lines(page: Path, name: str) -> tuple[list[str], list[str]]:
    """Read the block `diff NAME`; returns its lines before and after the change."""
    before: list[str] = []
    after: list[str] = []
    for line in code_block(page, f"diff {name}", containing="").splitlines():
        kind, text = line[:1], line[1:]
        assert kind in (" ", "-", "+"), f"{page}: {line!r} is no line of a diff"
        if kind != "+":
            before.append(text)
        if kind != "-":
            after.append(text)
    assert before != after, f"{page}: {name} changes nothing"
    return before, after


def apply_change(text: str, before: Sequence[str], after: Sequence[str]) -> str:
    """Replace the lines `before`, which must be in a text once, one behind the other; nothing else is changed."""
    lines = text.splitlines(keepends=True)
    old = [f"{line}\n" for line in before]
    places = [place for place in range(len(lines)) if lines[place : place + len(old)] == old]
    assert len(places) == 1, f"these lines are {len(places)} times in the file, not once: {before}"
    (place,) = places
    return "".join([*lines[:place], *(f"{line}\n" for line in after), *lines[place + len(old) :]])


def replaced(text: str, **addresses: str) -> str:
    """Replace what differs on the machine of a test: addresses. Each must occur."""
    for old, new in addresses.items():
        assert old in text, f"{old!r} is not in {text!r}"
        text = text.replace(old, new)
    return text
