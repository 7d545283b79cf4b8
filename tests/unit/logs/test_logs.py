import io
import json
import logging

import pytest
import structlog

from snorky.gateway.logs import configure_logs


@pytest.fixture
def lines():
    """Logs go here; the configuration before is restored."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logs(stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_event_is_one_json_line_with_level_logger_and_time(lines):
    structlog.get_logger("snorky.test").info("started", port=8002)
    (line,) = lines()
    assert (line["event"], line["port"], line["level"], line["logger"]) == ("started", 8002, "info", "snorky.test")
    assert line["timestamp"].endswith("Z")


def test_standard_library_logs_the_same_way(lines):
    logging.getLogger("asyncio").warning("slow %s", "callback")
    (line,) = lines()
    assert (line["event"], line["level"], line["logger"]) == ("slow callback", "warning", "asyncio")


def test_lowest_level_is_respected(lines):
    structlog.get_logger("snorky.test").debug("detail")
    logging.getLogger("aiohttp.access").info("GET /")
    assert lines() == []


def test_control_characters_are_escaped(lines):
    structlog.get_logger("snorky.test").info("a\nb", ip='x\x1b[31m\u202e\r\n{"event": "forged"}\ud800')
    (line,) = lines()
    assert line["event"] == "a\\nb"
    assert line["ip"] == 'x\\x1b[31m\\u202e\\r\\n{"event": "forged"}\\ud800'


def test_long_value_is_cut(lines):
    structlog.get_logger("snorky.test").info("got", text="x" * 100_000, items=["y" * 10_000])
    (line,) = lines()
    assert line["text"] == "x" * 500 + "... (100000 characters)"
    assert len(line["items"]) < 600


@pytest.mark.parametrize("name", ["password", "api_key", "token", "hmac_secret", "Authorization", "payload"])
def test_value_under_a_secret_name_is_masked(lines, name):
    structlog.get_logger("snorky.test").info("got", **{name: "swordfish"})
    assert lines()[0][name] == "***"


def test_password_in_a_url_is_masked(lines):
    structlog.get_logger("snorky.test").info("dialing", url="redis://node:swordfish@redis:6379/0")
    assert lines()[0]["url"] == "redis://***@redis:6379/0"


def test_traceback_shows_no_local_variables(lines):
    secret = "swordfish"
    try:
        _ = [secret][5]
    except IndexError:
        structlog.get_logger("snorky.test").exception("failed")
    (line,) = lines()
    assert "IndexError: list index out of range" in line["exception"]
    assert "\n" in line["exception"]
    assert "swordfish" not in line["exception"]
