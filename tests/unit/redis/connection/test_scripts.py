"""Scripts against a scripted server: which are sent again in full, and which are not."""

import asyncio
import hashlib
from pathlib import Path

import pytest

import snorky.gateway.redis
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Call, Scripts
from tests.support.servers.scripted_redis import Command, ScriptedRedis
from tests.unit.redis.connection.test_commands import commander

FOLDER = Path(snorky.gateway.redis.__file__).parent
RENEW, LOOK = Call("renew", [b"l", b"c"], [b"o", b"1"]), Call("look", [b"l", b"r"], [b"1", b"0"])
ECHO = command(b"ECHO", b"x")


def source(name: str) -> bytes:
    return next(FOLDER.glob(f"**/lua/{name}.lua")).read_bytes()


def digest(name: str) -> bytes:
    return hashlib.sha1(source(name)).hexdigest().encode()


async def asked(redis: ScriptedRedis, *words: bytes) -> Command:
    found = await redis.next(words[0])
    assert found[: len(words)] == words
    return found


async def test_a_script_that_redis_does_not_know_is_sent_in_full_and_one_that_was_done_is_not_done_again() -> None:
    async with ScriptedRedis() as redis, commander(redis) as sending:
        scripts = Scripts(sending)

        async def script() -> None:
            await asked(redis, b"EVALSHA", digest("renew"), b"2", b"l", b"c", b"o", b"1")
            await asked(redis, b"EVALSHA", digest("look"))
            await asked(redis, b"ECHO")
            redis.send(b":1\r\n-NOSCRIPT No matching script.\r\n:2\r\n")
            await asked(redis, b"EVAL", source("look"), b"2", b"l", b"r", b"1")
            await asked(redis, b"ECHO")
            redis.send(b":3\r\n:4\r\n")

        answers, _ = await asyncio.gather(scripts.run(RENEW, LOOK, ECHO), script())
        assert answers == [1, 3, 4]


async def test_an_error_of_one_step_is_one_of_all() -> None:
    def answer(words: Command) -> bytes:
        return b"-OOM command not allowed\r\n"

    async with ScriptedRedis(answer) as redis, commander(redis) as sending:
        with pytest.raises(BrokerUnavailable) as refusal:
            await Scripts(sending).run(ECHO, RENEW)
        assert refusal.value.what.startswith("OOM")


def test_every_script_has_a_shebang_line_and_releases_are_allowed_without_memory() -> None:
    first = {path.stem: path.read_text().partition("\n")[0] for path in FOLDER.glob("**/lua/*.lua")}
    assert all(line.startswith("#!lua") for line in first.values())
    for name in ("renew", "resign", "leave", "release", "seize", "swept"):
        assert first[name] == "#!lua flags=allow-oom", name
    for name in ("enter", "update", "claim"):
        assert first[name] == "#!lua", name
