"""FakeServer: the simulated server of the package `fakeredis`, adapted so that it takes what nodes send to Redis.

Rules:
- Scripts may begin with a line `#!lua`, as in Redis 7. fakeredis does not know it, so Lua gets the script without it
  (an empty line remains, so that line numbers in errors stay right); the digest is that of the whole script.
- Scripts get `redis.sha1hex`, which fakeredis has for functions only. An error of Lua is one line, as the protocol
  requires: without the traceback.
- INFO, which fakeredis does not have, answers with what nodes read: the run id, and that there is no maxmemory.

fakeredis has no public interface for this, so its version is bounded in pyproject.toml.
"""

import hashlib
import secrets
import threading
from typing import Any

import fakeredis
from fakeredis._clients._sync import FakeRedisConnection
from fakeredis._clients._tcp_server import TCPFakeRequestHandler
from fakeredis._commands import command
from fakeredis._helpers import SimpleError
from fakeredis._socket import FakeSocket

__all__ = ["FakeServer"]


class _State(fakeredis.FakeServer):
    """The data of a server."""

    def __init__(self) -> None:
        super().__init__(server_type="redis", version=(8, 0))
        self.run_id = secrets.token_hex(20)


class _Session(FakeSocket):
    """The commands of one connection."""

    _server: _State

    def eval(self, script: bytes, numkeys: int, *keys_and_args: bytes) -> Any:
        """Run a script; EVALSHA calls this too."""
        self._server.script_cache[_sha1hex(script)] = script
        lua = script[script.index(b"\n") :] if script.startswith(b"#!lua") and b"\n" in script else script
        try:
            return super().eval(lua, numkeys, *keys_and_args)
        except SimpleError as error:
            raise SimpleError(error.value.partition("\n")[0]) from error

    def _get_server_runtime(self, server: fakeredis.FakeServer) -> Any:
        is_new = not hasattr(server, "_lua_runtime")
        runtime = super()._get_server_runtime(server)
        if is_new:
            runtime.globals()[b"redis"][b"sha1hex"] = _sha1hex
        return runtime

    @command(name="INFO", fixed=(), repeat=(bytes,))
    def info(self, *_: bytes) -> bytes:
        """Answer INFO, whatever the sections."""
        facts = {
            "redis_version": "8.0.0",
            "run_id": self._server.run_id,
            "used_memory": 0,
            "maxmemory": 0,
            "maxmemory_policy": "noeviction",
        }
        return "".join(f"{name}:{value}\r\n" for name, value in facts.items()).encode()


def _sha1hex(data: bytes) -> bytes:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest().encode()


class _Connection(FakeRedisConnection):
    _server: _State

    def _connect(self) -> FakeSocket:
        return _Session(
            self._server,
            client_class=self._client_class,
            db=self.db,
            lua_modules=self._lua_modules,
            client_info=self._client_info,
        )


class _Handler(TCPFakeRequestHandler):
    def setup(self) -> None:
        super().setup()
        self.current_client.__class__ = _Connection  # it is not used yet, and fakeredis has no way to name a class


class FakeServer:
    """A server on a loopback port, in daemon threads, which end with the process. port: 0 = any free one."""

    def __init__(self, port: int = 0) -> None:
        self._server = fakeredis.TcpFakeServer(("127.0.0.1", port))
        self._server.daemon_threads = True
        self._server.RequestHandlerClass = _Handler
        self._server.fake_server = _State()
        self.url = f"redis://127.0.0.1:{self._server.server_address[1]}/0"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="fakeredis", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End it and its connections; takes up to 5 s."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)
