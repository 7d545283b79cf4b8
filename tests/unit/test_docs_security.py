"""SECURITY.md: each line of its list names tests that exist."""

import re

from tests.support.processes.tools import ROOT

PAGE = (ROOT / "SECURITY.md").read_text()


def test_every_line_of_the_list_has_a_test() -> None:
    lines = PAGE[PAGE.index("| what | test |") :].strip().splitlines()[2:]
    assert len(lines) >= 10
    for line in lines:
        paths = re.findall(r"`(tests/[\w/]+\.py)`", line)
        assert paths and all((ROOT / path).exists() for path in paths), line


def test_links_lead_somewhere() -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", PAGE)]
    assert links and all((ROOT / link).exists() for link in links)
