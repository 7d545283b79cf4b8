"""Checks the permissions that a node's Redis user needs, command by command, without leaving any data behind."""

import secrets
from collections.abc import Sequence

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

__all__ = ["missing_rights"]

_KEPT_MS = 10_000  # the test key is deleted at once; if that is not permitted, it expires
_UNKNOWN_SCRIPT = "0" * 40


def _commands(key: str) -> dict[str, Sequence[object]]:
    """Return a test command for each permission. Most fail for another reason than a permission, so write nothing."""
    return {
        "set": ("SET", key, "1", "PX", _KEPT_MS),  # a string: commands for other types fail on it
        "eval": ("EVAL", "return 1", 0),
        "evalsha": ("EVALSHA", _UNKNOWN_SCRIPT, 0),
        "script|load": ("SCRIPT", "LOAD", "return 1"),
        "time": ("TIME",),
        "info": ("INFO", "server"),
        "function|load": ("FUNCTION", "LOAD", "#!lua name=check\n"),  # fails: it registers no function
        "function|list": ("FUNCTION", "LIST", "LIBRARYNAME", "check"),
        "fcall_ro": ("FCALL_RO", "check", 0),  # fails: there is no function of that name
        "exists": ("EXISTS", key),
        "pexpire": ("PEXPIRE", key, _KEPT_MS),
        "pttl": ("PTTL", key),
        "get": ("GET", key),
        "mget": ("MGET", key),
        "sadd": ("SADD", key, "a"),
        "srem": ("SREM", key, "a"),
        "smembers": ("SMEMBERS", key),
        "sscan": ("SSCAN", key, 0),
        "hget": ("HGET", key, "a"),
        "hmget": ("HMGET", key, "a"),
        "hgetall": ("HGETALL", key),
        "hlen": ("HLEN", key),
        "hscan": ("HSCAN", key, 0),
        "hset": ("HSET", key, "a", "1"),
        "hdel": ("HDEL", key, "a"),
        "hincrby": ("HINCRBY", key, "a", 1),
        "xadd": ("XADD", key, "*", "a", "1"),
        "xrange": ("XRANGE", key, "-", "+"),
        "xread": ("XREAD", "STREAMS", key, "0"),
        "xrevrange": ("XREVRANGE", key, "+", "-"),
        "xtrim": ("XTRIM", key, "MAXLEN", 1),
        "zadd": ("ZADD", key, 1, "a"),
        "zrem": ("ZREM", key, "a"),
        "zscore": ("ZSCORE", key, "a"),
        "zmscore": ("ZMSCORE", key, "a"),
        "zrange": ("ZRANGE", key, 0, 1),
        "zrevrange": ("ZREVRANGE", key, 0, 1),
        "zrangebyscore": ("ZRANGEBYSCORE", key, 0, 1),
        "zremrangebyscore": ("ZREMRANGEBYSCORE", key, 0, 1),
        "del": ("DEL", key),
    }


async def missing_rights(client: Redis, prefix: str) -> list[str]:
    """List the commands, named as in ACL rules, that this user may not run on keys under prefix. Raises RedisError."""
    commands = _commands(f"{prefix}:{{check:{secrets.token_hex(8)}}}")
    async with client.pipeline(transaction=False) as pipeline:
        for command in commands.values():
            pipeline.execute_command(*command)
        answers = await pipeline.execute(raise_on_error=False)
    return [right for right, answer in zip(commands, answers, strict=True) if isinstance(answer, NoPermissionError)]
