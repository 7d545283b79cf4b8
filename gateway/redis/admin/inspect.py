"""Checks of Redis for operator commands (`snorky check`): reachability, version, memory, permissions, pub/sub.

Each check opens its own connections and closes them; nodes do not use these connections.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.admin.rights import missing_rights
from snorky.gateway.redis.cluster.shard_map import ShardMap, shard_map_of
from snorky.gateway.redis.cluster.slots import SLOTS
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.connection.resp import DialError
from snorky.gateway.redis.keys import channel_name

__all__ = ["RedisReport", "explain", "inspect_redis", "reading"]

VERSION_MIN = (7, 0)  # supports scripts with a shebang line; earlier versions have security advisories
MEMORY_ALMOST_FULL = 0.9
_PUBSUB_TIMEOUT_S = 2.0


@dataclass(slots=True)
class RedisReport:
    """The result of `inspect_redis`. facts: for display. problems: with remedies. notes: acceptable for a while.

    memory_bytes: that Redis may use, maxmemory or that of its machine; 0 = not known.
    """

    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    memory_bytes: int = 0


async def inspect_redis(target: RedisTarget, prefix: str) -> RedisReport:
    """Connect to Redis as a node would, and check it. Never raises for errors of Redis; they are in the report."""
    if (cluster := shard_map_of(target)) is not None:
        return await _inspect_cluster(target, cluster, prefix)
    report = RedisReport(facts={"address": target.safe_url})
    client = client_of(target)
    try:
        if target.sentinels is not None:
            report.facts["primary"] = (await target.resolved()).address
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await client.ping()
        report.facts["answers in"] = f"{(loop.time() - began_s) * 1000:.1f} ms"
        try:
            _judge(await client.info(), report)
        except NoPermissionError:
            report.problems.append("the Redis user may not run INFO: add +info to its ACL rules")
        await _permitted(client, prefix, report)
        await _check_pubsub(target, prefix, report)
    except (RedisError, OSError, DialError) as error:
        report.problems.append(explain(error, target))
    finally:
        await client.aclose()
    return report


async def _inspect_cluster(target: RedisTarget, cluster: ShardMap, prefix: str) -> RedisReport:
    """Check each primary of a Cluster."""
    report = RedisReport(facts={"address": target.safe_url})
    try:
        await cluster.look()
    except DialError as error:
        report.problems.append(explain(error, target))
        return report
    covered = sum(last + 1 - first for shard in cluster.shards for first, last in shard.slots)
    report.facts["cluster"] = f"{len(cluster.shards)} primaries, {covered} of {SLOTS} slots"
    if covered != SLOTS:
        report.problems.append(f"{SLOTS - covered} slots of the Cluster have no server: see redis-cli --cluster check")
    for shard in cluster.shards:
        server = cluster.server(shard.primary)
        client = client_of(server)
        try:
            _judge(await client.info(), report, is_cluster=True)
            await _permitted(client, prefix, report)
            await _may_scan(client, report)
        except (RedisError, OSError) as error:
            report.problems.append(explain(error, server))
        finally:
            await client.aclose()
    return report


@asynccontextmanager
async def reading(target: RedisTarget) -> AsyncIterator[Redis]:
    """Context manager that opens a client; errors of Redis become ConnectionError, with a readable text."""
    client = client_of(target)
    try:
        yield client
    except (RedisError, OSError) as error:
        raise ConnectionError(explain(error, target)) from error
    finally:
        await client.aclose()


def explain(error: Exception, target: RedisTarget) -> str:
    """Describe in one line why a command to Redis failed, and what to check. Contains no secret."""
    where = f"Redis at {target.safe_url}"
    if isinstance(error, AuthenticationError) or "WRONGPASS" in str(error) or "NOAUTH" in str(error):
        return f"{where} rejects the user or password: correct them in redis_url (percent-encode : @ / in them)"
    if isinstance(error, NoPermissionError):
        return f"{where} denies the command: {error}"
    if isinstance(error, RedisError) and not isinstance(error, OSError) and "MOVED" in str(error):
        return f"{where} is part of a Cluster: write redis+cluster://HOST:PORT,... in redis_url"
    reason = str(error) or type(error).__name__
    return f"{where} cannot be reached: {reason}; is it running, and is redis_url right?"


def _judge(info: dict[str, object], report: RedisReport, *, is_cluster: bool = False) -> None:
    name = str(info.get("server_name") or "redis")
    version = str(info.get("valkey_version") or info.get("redis_version") or "unknown")
    report.facts["server"] = f"{name} {version}"
    compatible = str(info.get("redis_version") or "")
    if [int(part) if part.isdigit() else 0 for part in compatible.split(".")[:2]] < list(VERSION_MIN):
        report.problems.append(f"Redis {version} is too old: 7.0 or later is needed (or Valkey)")
    if info.get("cluster_enabled") and not is_cluster:
        report.problems.append("this Redis is part of a Cluster: write redis+cluster://HOST:PORT,... in redis_url")
    if info.get("role") == "slave":
        report.problems.append("this Redis is a replica and rejects writes: name its primary in redis_url")
    clients, clients_max = info.get("connected_clients"), info.get("maxclients")
    if isinstance(clients, int) and isinstance(clients_max, int):
        report.facts["clients"] = f"{clients} of {clients_max}"
        if clients_max - clients < 10:  # a node has up to ten connections
            report.problems.append(f"Redis has {clients} of {clients_max} clients: raise maxclients")
    _judge_memory(info, report)


def _judge_memory(info: dict[str, object], report: RedisReport) -> None:
    used, most, policy = info.get("used_memory"), info.get("maxmemory"), info.get("maxmemory_policy")
    if not isinstance(used, int) or not isinstance(most, int):
        return
    machine = info.get("total_system_memory")
    report.memory_bytes += most or (machine if isinstance(machine, int) else 0)
    if not most:
        report.facts["memory"] = f"{used >> 20} MiB, no maxmemory"
        report.notes.append(
            "Redis has no maxmemory: when the machine runs out of memory, the kernel kills Redis; set maxmemory to "
            "three quarters of the memory that it may use"
        )
    else:
        report.facts["memory"] = f"{used >> 20} of {most >> 20} MiB"
    if most and used >= most * MEMORY_ALMOST_FULL:
        report.problems.append(
            f"Redis has used {used * 100 // most} % of its maxmemory: when full it rejects all writes; raise "
            "maxmemory, or find out what fills it (redis-cli --bigkeys)"
        )
    if policy and policy != "noeviction":
        found = report.problems if most else report.notes  # without maxmemory it has no effect yet
        found.append(f"Redis evicts keys when it is full (maxmemory-policy {policy}): set noeviction")


async def _permitted(client: Redis, prefix: str, report: RedisReport) -> None:
    """Report each permission that a node needs and the user does not have."""
    missing = await missing_rights(client, prefix)
    needed = [f"+{right}" for right in missing if not right.startswith("function|")]
    if needed:
        report.problems.append(
            f"the Redis user may not run commands that nodes need: add {' '.join(needed)} ~{prefix}:* to its ACL rules"
        )
    if len(needed) < len(missing):
        report.notes.append(
            "the Redis user may not load functions, so publishers cannot use snorky_publish unless another node loads "
            "it: add +function|load +function|list to its ACL rules"
        )


async def _may_scan(client: Redis, report: RedisReport) -> None:
    """Report if the user may not run SCAN, which nodes need in a Cluster after one of its servers has started."""
    try:
        await client.scan(count=1)
    except NoPermissionError:
        note = "the Redis user may not run SCAN, so outdated members and names may remain after a primary was restarted"
        if (note := f"{note}: add +scan to its ACL rules") not in report.notes:
            report.notes.append(note)


async def _check_pubsub(target: RedisTarget, prefix: str, report: RedisReport) -> None:
    """Check that a publication under the prefix arrives at a subscriber, including permissions and proxies."""
    channel = channel_name(prefix, f"check:{secrets.token_hex(8)}")
    client = client_of(target)
    try:
        async with client.pubsub() as pubsub, asyncio.timeout(_PUBSUB_TIMEOUT_S):
            await pubsub.subscribe(channel)
            await pubsub.get_message(timeout=_PUBSUB_TIMEOUT_S)  # the confirmation, or NOPERM
            await client.publish(channel, b"1")
            while await pubsub.get_message(ignore_subscribe_messages=True, timeout=_PUBSUB_TIMEOUT_S) is None:
                pass
        report.facts["pub/sub"] = f"messages received on {prefix}:*"
    except NoPermissionError:
        report.problems.append(
            f"the Redis user may not publish and subscribe under the prefix: give it &{prefix}:* +publish +subscribe"
        )
    except TimeoutError:
        report.problems.append(f"a publication on {prefix}:* was not received within {_PUBSUB_TIMEOUT_S:.0f} s")
    finally:
        await client.aclose()
