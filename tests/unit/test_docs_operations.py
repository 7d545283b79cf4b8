"""docs/operations.md and docs/protocol.md name everything that operators and authors of clients may meet."""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import snorky.gateway.errors
from snorky.gateway import CloseCode, Limits, Metrics, SnorkyError

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
SOURCES = {path: path.read_text() for folder in ("gateway", "services") for path in (ROOT / folder).rglob("*.py")}
CODE = "\n".join(SOURCES.values())


def section(page: str, title: str) -> str:
    """Return the text under a heading, up to the next of its level."""
    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert match is not None, title
    return match[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of all tables, without their heads."""
    lines = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in text.splitlines() if re.match(r"\|.*\|$", line)]
    return [cells for cells in lines if cells[0].startswith("`")]


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([\w-]+)`", cell))


def series() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    metrics = Metrics()
    for collector in vars(metrics).values():
        for family in collector.describe() if hasattr(collector, "describe") else ():
            suffix = "_total" if family.type == "counter" else ""
            yield family.name + suffix, family.type, tuple(collector._labelnames)


def test_every_series_is_documented_with_its_type_and_labels() -> None:
    documented = {
        (cells[0].strip("`"), cells[1].strip(), frozenset(names(cells[2])))
        for cells in rows(section(OPERATIONS, "Metrics"))
        if cells[0].startswith("`snorky_")
    }
    assert documented == {(name, kind, frozenset(labels)) for name, kind, labels in series()}


@pytest.mark.parametrize(
    ("pattern", "where"),
    [
        (r'drops\.labels\("(\w+)"\)', "reason in `snorky_drops_total`"),
        (r'code = "(unknown_version|too_large)"', "reason in `snorky_drops_total`"),
        (r'limit_hits\.labels\("(\w+)"\)', "limit in `snorky_limit_hits_total`"),
        (r'HandshakeRefused\(\s*\d+, "(\w+)"', "reason in `snorky_handshakes_rejected_total`"),
    ],
)
def test_every_label_value_of_ours_is_documented(pattern: str, where: str) -> None:
    values = set(re.findall(pattern, CODE))
    assert values
    table = section(OPERATIONS, "Metrics")
    place = table[table.index(f"| {where} |") :].partition("\n\n")[0]
    assert values <= names(place)


def test_handshake_refusals_of_the_protocol_are_those_of_the_code() -> None:
    table = re.findall(r"^\| (\d{3}) \| ([^|]+) \|", section(PROTOCOL, "Connecting"), re.MULTILINE)
    documented = {(status, name) for status, reasons in table for name in names(reasons)}
    assert documented == set(re.findall(r'HandshakeRefused\(\s*(\d+), "(\w+)"', CODE))


def _codes_of_classes(kind: type[SnorkyError] = SnorkyError) -> Iterator[str]:
    yield kind.code
    for each in kind.__subclasses__():
        if each.__module__ == snorky.gateway.errors.__name__:
            yield from _codes_of_classes(each)


def test_every_error_code_is_documented_and_no_other() -> None:
    code = CODE.replace('code = "handshake_refused"', "")  # an HTTP status and a text; no message
    literal = re.findall(r'(?:\bcode = |\bcode=|RPCError\("[^"]+", |SnorkyError\("[^"]+"\), )"(\w+)"', code)
    literal += re.findall(r'super\(\).__init__\("[^"]+", "(\w+)"\)', code)  # of RPCErrors with a name
    table = section(PROTOCOL, "Errors")
    documented = {name for cells in rows(table) for name in names(cells[0])}
    assert documented == {*_codes_of_classes(), *literal}


def test_every_close_code_has_the_clients_reaction() -> None:
    table = section(PROTOCOL, "The end of a connection")
    first_cells = re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
    assert {int(code) for cell in first_cells for code in cell.split(", ")} == set(CloseCode)


def test_alerts_are_those_of_the_rules() -> None:
    shipped = re.findall(r"- alert: (\w+)\n.*?severity: (\w+)", (ROOT / "deploy/alerts.yml").read_text(), re.DOTALL)
    assert [(cells[0].strip("`"), cells[1]) for cells in rows(section(OPERATIONS, "Alerts"))] == shipped


@pytest.mark.parametrize("text", [cells[0].strip("`") for cells in rows(section(OPERATIONS, "Troubleshooting"))])
def test_texts_of_the_troubleshooting_exist_in_the_code(text: str) -> None:
    assert text in CODE


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_links_of_the_documents_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}, link


def test_limits_of_the_protocol_are_the_defaults() -> None:
    figures = re.findall(r"[\d,]*\d", section(PROTOCOL, "Limits"))
    for each in fields(Limits):
        if each.name != "send_buffer_bytes":  # only the kernel uses it; no client sees it
            assert f"{each.default:,.10g}" in figures or f"{each.default:,}" in figures, each.name
