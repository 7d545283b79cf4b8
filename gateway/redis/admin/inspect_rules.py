"""Checks for operator commands (`snorky check`): the function library, and whether all nodes have the same rules."""

from collections.abc import Mapping
from typing import Any

from redis.exceptions import RedisError

from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules, digest_of
from snorky.gateway.redis.admin.inspect import RedisReport
from snorky.gateway.redis.admin.nodes import read_nodes
from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.cluster.shard_map import shard_map_of
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.connection.resp import DialError
from snorky.gateway.redis.directory.versions import WIRE, foreign_nodes
from snorky.gateway.redis.history.library_text import LIBRARY, Found, code_in, judge, lines_in, quote
from snorky.gateway.redis.history.rule_tables import RuleTables, write_table
from snorky.gateway.redis.keys import nodes_key, rules_key

__all__ = ["inspect_rules"]

_REMEDY = (
    "nodes load it again within 2 s, so run this again; if the problem remains, look for "
    "`snorky_publish is not loaded` in their logs"
)


async def inspect_rules(target: RedisTarget, prefix: str, rules: Mapping[str, Rules[ChannelRule]]) -> RedisReport:
    """Check the function library, and compare rules with those of the nodes. Never raises for errors of Redis."""
    report = RedisReport()
    digest = digest_of(rules)
    client = client_of(target.of(nodes_key(prefix)))
    try:
        answer: Any = await client.get(rules_key(prefix))
        text = (answer or b"").decode()
        nodes = await read_nodes(client, prefix)
        libraries = await _libraries(target)
    except (RedisError, OSError, DialError, UnicodeDecodeError) as error:
        report.facts["rules"] = f"not compared: {str(error)[:200]}"
        return report
    finally:
        await client.aclose()
    report.facts["rules"] = digest
    found = _worst(libraries)
    report.facts["snorky_publish"] = _fact(found, text)
    is_cluster = target.is_cluster
    if problem := _problem(found, has_rules=bool(text), has_nodes=bool(nodes)):
        report.problems.append(problem)
    elif is_cluster and text and any(lines_in(each).get(prefix) != quote(text) for each in libraries):
        report.problems.append(f"a server of the Cluster has other channel rules than the nodes: {_REMEDY}")
    if foreign := foreign_nodes(nodes):
        shown = ", ".join(f"{node_id} ({wire})" for node_id, wire in sorted(foreign.items())[:10])
        report.problems.append(
            f"nodes whose version and this one's (wire {WIRE}) do not understand each other: {shown}; stop them before "
            "this version starts, or give it another prefix or database"
        )
    if found in (Found.OLDER, Found.FOREIGN) and not text:
        report.notes.append(f"the function library in Redis is {found.value}: a node of this version replaces it")
    if text and not _has(text, rules):
        report.notes.append(
            "the nodes promise other channel rules than these settings: a channel keeps the longest history that any "
            "node of the last hour requires; use the same settings on all nodes"
        )
    others = sorted(node.node_id for node in nodes if node.state.get("rules", digest) != digest)
    if others:
        report.notes.append(f"nodes with other channel rules than these settings: {', '.join(others[:10])}")
    return report


async def _libraries(target: RedisTarget) -> list[str | None]:
    """Read the library of the server; in a Cluster, of each primary."""
    servers = [target]
    if (cluster := shard_map_of(target)) is not None:
        await cluster.look()
        servers = [cluster.server(shard.primary) for shard in cluster.shards]
    found = []
    for server in servers:
        client = client_of(server)
        try:
            found.append(code_in(await client.function_list(LIBRARY, withcode=True)))
        finally:
            await client.aclose()
    return found


def _worst(libraries: list[str | None]) -> Found:
    return max((judge(each) for each in libraries), key=list(Found).index, default=Found.MISSING)


def _fact(found: Found, text: str) -> str:
    if found is Found.MISSING:
        return "not loaded" if text else "not loaded: no node with this prefix has been here"
    return f"{found.value} library; {'rules are registered' if text else 'no node with this prefix has been here'}"


def _problem(found: Found, *, has_rules: bool, has_nodes: bool) -> str:
    """Describe the problem with the library; "" = none. Without registered rules, only a later version is one."""
    if found is Found.LATER:
        return "the function library in Redis is of a later version and is not replaced by this one: upgrade this node"
    if found in (Found.OURS, Found.SIBLING) or not has_rules:
        return ""
    if found is Found.MISSING:
        return f"nodes are running, but the function library in Redis is missing: {_REMEDY}" if has_nodes else ""
    return (
        f"the function library in Redis is {found.value}: another deployment or a restored dump replaced it, and "
        f"it may not add publications to histories; {_REMEDY}"
    )


def _has(text: str, rules: Mapping[str, Rules[ChannelRule]]) -> bool:
    """True if a merged text contains exactly these rules."""
    return RuleTables(f"[{write_table(rules)}]").digest == RuleTables(text).digest
