"""The real centrifuge-js of npm, in Node: some clients in one process, which reports each of their events."""

from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import pytest

from tests.support.clients.js_process import JSProcess, running_js
from tests.support.processes.tools import ROOT

__all__ = ["FOLDER", "centrifuge_js", "needs_centrifuge_js"]

FOLDER: Final = ROOT / "tests" / "centrifuge_js"

needs_centrifuge_js = pytest.mark.skipif(
    not (FOLDER / "node_modules" / "centrifuge").exists(),
    reason="needs centrifuge-js: cd tests/centrifuge_js && npm install --no-package-lock",
)


def centrifuge_js(
    url: str, *, count: int = 1, form: str = "json", **settings: Any
) -> AbstractAsyncContextManager[JSProcess]:
    """Run clients. url: of the WebSocket. settings: see clients.js."""
    return running_js(FOLDER, "clients.js", url=url, count=count, form=form, **settings)
