"""The code blocks of a page of documentation, found by a text in them: other blocks may be added."""

import re
from pathlib import Path

__all__ = ["code_block"]


def code_block(page: Path, language: str, *, containing: str) -> str:
    """Find the page's only block in this language that contains this text.

    Raises:
        AssertionError: none contains it, or several do.
    """
    blocks = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    found = [block for block in blocks if containing in block]
    assert len(found) == 1, f"{page}: {len(found)} blocks in {language} contain {containing!r}"
    return found[0]
