"""Settings: read one TOML file and the environment into frozen values, checked before anything starts.

    settings = load(Path("snorky.toml"), os.environ)     # ConfigurationError: every problem, one a line
    settings.problems(insecure=False)                    # valid settings that are not safe to start with

Rules:
- Defaults that are open, for an easy first run, are accepted only on loopback (`problems` checks that).
- Unknown keys are refused: a misspelt limit that is silently ignored does not limit anything.
- Secrets (`redis_url`, `api_key`, `hmac_secret`, service options) are in no repr; of the API key only the hash is kept.
- A problem says in which file or variable, which key, what is wrong and what to write; it never quotes the value.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_type_hints

import structlog
from msgspec import Meta

from snorky.gateway.config.api_keys import (
    NO_KEY,
    UNNAMED_KEY,
    ApiKey,
    KeyTable,
    gather_api_keys,
    parse_api_key,
    parse_api_keys,
)
from snorky.gateway.config.auth import Auth
from snorky.gateway.config.hooks import HOOK_TABLES, Hooks
from snorky.gateway.config.limits import PAYLOAD_MAX_BYTES, ClusterLimits, Limits
from snorky.gateway.config.old_names import SETTINGS as OLD_NAMES
from snorky.gateway.config.old_names import take_renamed
from snorky.gateway.config.origins import parse_origins
from snorky.gateway.config.parsers import (
    PROTOCOLS,
    SOCKJS_CLIENT_URL,
    Network,
    is_loopback,
    parse_host,
    parse_native_fanout,
    parse_networks,
    parse_prefix,
    parse_protocols,
    parse_redis_url,
    parse_script_url,
)
from snorky.gateway.config.pusher import PusherApp, PusherTable, gather_pusher_apps, parse_pusher_apps
from snorky.gateway.config.secrets import check_visible
from snorky.gateway.config.service_tables import STANDARD_BACKEND, STANDARD_SERVICES, ServiceTable
from snorky.gateway.config.sources import CONFIG_VARIABLE, Key, Written, read_environment, read_toml, spell, variable_of
from snorky.gateway.errors import ConfigurationError

__all__ = [
    "PAYLOAD_MAX_BYTES",
    "ApiKey",
    "Auth",
    "ClusterLimits",
    "Hooks",
    "Limits",
    "Network",
    "Private",
    "Public",
    "ServiceTable",
    "Settings",
    "is_loopback",
    "load",
]

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]

_log = structlog.get_logger("snorky.settings")
_NAME = re.compile(r"[a-z0-9_-]+")
_T = TypeVar("_T")


def _parsed(default: Any, wire: Any, parse: Callable[[Any], Any], *, secret: bool = False) -> Any:
    """A field that is written as type `wire` and stored as the result of `parse`."""
    return field(default=default, repr=not secret, metadata={"wire": wire, "parse": parse})


@dataclass(frozen=True, slots=True, kw_only=True)
class Public:
    """[public]: the port for clients."""

    host: str = _parsed("127.0.0.1", str, parse_host)  # "" = all, IPv4 and IPv6
    port: Port = 8002  # 0 = a free port, printed in the ready line
    allowed_origins: tuple[str, ...] = _parsed((), list[str], parse_origins)  # see snorky.gateway.config.origins
    trusted_proxies: tuple[Network, ...] = _parsed((), list[str], parse_networks)  # may set X-Forwarded-For
    compression: bool = False
    ping_interval_s: Seconds = 10.0
    drain_grace_s: Annotated[float, Meta(ge=0, le=3600)] = 20.0
    sockjs_client_url: str = _parsed(SOCKJS_CLIENT_URL, str, parse_script_url)  # the script in SockJS's iframes
    protocols: tuple[str, ...] = _parsed(PROTOCOLS, list[str], parse_protocols)  # beside Snorky's own
    native_fanout: str = _parsed("auto", str, parse_native_fanout)  # of the extension module, where it is built
    centrifuge_personal_channels: bool = False  # Centrifuge clients are subscribed to "#IDENTITY"
    pusher_apps: Mapping[str, PusherApp] | None = _parsed(None, PusherTable, parse_pusher_apps, secret=True)  # by id


@dataclass(frozen=True, slots=True, kw_only=True)
class Private:
    """[private]: the port for backends, health, readiness and metrics."""

    host: str = _parsed("127.0.0.1", str, parse_host)
    port: Port = 8003
    api_key: ApiKey | None = field(default=None, repr=False, metadata={"wire": str, "parse": parse_api_key})
    api_keys: Mapping[str, ApiKey] | None = _parsed(None, KeyTable, parse_api_keys, secret=True)  # by name

    @property
    def has_key(self) -> bool:
        """True if the backend needs a key."""
        return self.api_key is not None or bool(self.api_keys)

    @property
    def keys(self) -> dict[str, ApiKey]:
        """All keys by their names."""
        return {**({} if self.api_key is None else {UNNAMED_KEY: self.api_key}), **(self.api_keys or {})}

    def key_name(self, presented: str) -> str | None:
        """Return the name of the key that a backend sent; NO_KEY = it needs none, None = not one of ours."""
        if not self.has_key:
            return NO_KEY
        found = [name for name, key in self.keys.items() if key.matches(presented)]  # compare all: constant time
        return found[0] if found else None

    def permits(self, key_name: str, service: str) -> bool:
        """Return True if a backend may call a service. key_name: from `key_name`."""
        return not self.has_key or self.keys[key_name].permits(service)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings. Made by `load`; if constructed directly (a program, a test), values are not checked."""

    redis_url: str = _parsed("", str | list[str], parse_redis_url, secret=True)  # "" = the embedded server
    prefix: str = _parsed("snorky", str, parse_prefix)
    public: Public = field(default_factory=Public)
    private: Private = field(default_factory=Private)
    auth: Auth = field(default_factory=Auth)
    limits: Limits = field(default_factory=Limits)
    cluster_limits: ClusterLimits = field(default_factory=ClusterLimits)
    hooks: Hooks = field(default_factory=Hooks)
    services: Mapping[str, ServiceTable] = field(default_factory=lambda: STANDARD_SERVICES)  # the public registry
    backend: Mapping[str, ServiceTable] = field(default_factory=lambda: STANDARD_BACKEND)  # the private one

    @property
    def is_authenticating(self) -> bool:
        """True if clients can have identities: from [auth], or from the answers of [hooks.connect]."""
        return self.auth.is_configured or bool(self.hooks.connect.url)

    def problems(self, *, insecure: bool) -> list[str]:
        """Return what is not safe to start with, and the remedy. insecure: skip the checks of the public port."""
        found = []
        if not insecure and not is_loopback(self.public.host) and not self.auth.required:
            found.append(
                f'[public] host = "{self.public.host}" is reachable from elsewhere, and clients need not '
                'authenticate: write [auth] required = true, or host = "127.0.0.1", or start with --insecure if anyone '
                "may connect"
            )
        if not insecure and "*" in self.public.allowed_origins:
            found.append(
                '[public] allowed_origins = ["*"] lets any web page connect with the access of its visitors: '
                'name your origins (["https://app.example.org"]), or start with --insecure'
            )
        if not insecure and self.auth.unsafe_hmac_secret:
            found.append(
                "[auth] unsafe_hmac_secret accepts secrets that can be guessed and tokens that never expire: write "
                "hmac_secret, or start with --insecure for a test suite"
            )
        if not self.private.has_key and not is_loopback(self.private.host):
            found.append(
                f'[private] host = "{self.private.host}" is reachable from elsewhere without a key: set api_key '
                '(openssl rand -hex 32; SNORKY_PRIVATE__API_KEY_FILE takes a secret), or write host = "127.0.0.1"'
            )
        return found


def load(path: Path | None, environ: Mapping[str, str], warnings: list[str] | None = None) -> Settings:
    """Read settings from `path`, else from the file in SNORKY_CONFIG; the environment overrides the file.

    warnings: receives a text for each unknown variable that resembles no setting; None = log them. Raises
    ConfigurationError: its text lists all problems, one a line.
    """
    problems: list[str] = []
    ignored: list[str] = [] if warnings is None else warnings
    if path is None and environ.get(CONFIG_VARIABLE):
        path = Path(environ[CONFIG_VARIABLE])
    written = {} if path is None else read_toml(path, problems)
    written |= read_environment(environ, problems)
    take_renamed(written, problems)
    settings = _Assembly(written, problems, ignored).settings()
    for text in ignored if warnings is None else ():
        _log.warning("setting ignored", reason=text)
    if problems:
        raise ConfigurationError("\n".join(problems))
    return settings


class _Assembly:
    """Converts the written values key by key; adds a problem for each that it cannot use."""

    def __init__(self, written: dict[Key, Written], problems: list[str], ignored: list[str]) -> None:
        self._written = written
        self._problems = problems
        self._ignored = ignored

    def settings(self) -> Settings:
        """Return the settings; keys that no section uses are unknown settings."""
        gather_api_keys(self._written, self._problems)
        gather_pusher_apps(self._written, self._problems)
        top = self._section(Settings, ())
        public, private = self._section(Public, ("public",)), self._section(Private, ("private",))
        auth, limits = self._section(Auth, ("auth",)), self._section(Limits, ("limits",))
        cluster_limits = self._section(ClusterLimits, ("cluster_limits",))
        each_hook: dict[str, Any] = {name: self._section(kind, ("hooks", name)) for name, kind in HOOK_TABLES.items()}
        hooks = replace(self._section(Hooks, ("hooks",)), **each_hook)
        services, backend = self._tables("services"), self._tables("backend")
        self._refuse_unknown()
        if private.api_key and private.api_key.sha256 in [each.sha256 for each in (private.api_keys or {}).values()]:
            self._problems.append("[private] api_key is one of api_keys too: remove it there or here")
        self._problems.extend(auth.problems(has_connect_hook=bool(hooks.connect.url)))
        self._problems.extend(hooks.problems())
        if limits.outbox_max_bytes < limits.message_max_bytes:
            self._problems.append("[limits] outbox_max_bytes is below message_max_bytes: no such message could be sent")
        if public.port and public.port == private.port:
            self._problems.append(f"[public] port and [private] port are both {public.port}: write two different ones")
        if not services:
            services = dict(STANDARD_SERVICES)
        for app in (public.pusher_apps or {}).values():
            if app.service not in services:
                self._problems.append(f"[public] pusher_apps: {app.id} needs the service {app.service}: add its table")
        if not backend:  # the standard ones whose public service is configured
            backend = {
                name: table
                for name, table in STANDARD_BACKEND.items()
                if table.options.get("service") in (None, *services)
            }
        return Settings(
            redis_url=top.redis_url,
            prefix=top.prefix,
            public=public,
            private=private,
            auth=auth,
            limits=limits,
            cluster_limits=cluster_limits,
            hooks=hooks,
            services=MappingProxyType(services),
            backend=MappingProxyType(backend),
        )

    def _section(self, section: type[_T], table: Key) -> _T:
        hints = get_type_hints(section, include_extras=True)
        values: dict[str, Any] = {}
        for member in fields(section):  # type: ignore[arg-type]  # every section here is a dataclass
            if is_dataclass(hints[member.name]):  # a table of its own
                continue
            written = self._written.get((*table, member.name))
            if written is None or (section is Settings and "parse" not in member.metadata):
                continue
            del self._written[(*table, member.name)]
            wire, parse = member.metadata.get("wire", hints[member.name]), member.metadata.get("parse")
            try:
                value = written.converted(wire)
                for text in [value] if isinstance(value, str) else value if isinstance(value, list) else ():
                    check_visible(text)
            except ValueError as error:
                example = written.example(member.name, member.default, wire)
                self._problems.append(f"{written.where}: {error}{example}")
                continue
            try:
                values[member.name] = value if parse is None else parse(value)
            except ValueError as error:  # the parser's text includes what to write
                self._problems.append(f"{written.where}: {error}")
        return section(**values)

    def _tables(self, registry: str) -> dict[str, ServiceTable]:
        grouped: dict[str, dict[str, Written]] = {}
        for key in [key for key in self._written if key[0] == registry and len(key) > 1]:
            written, name = self._written.pop(key), key[1]
            if not _NAME.fullmatch(name):
                self._problems.append(f"{written.where}: a service's name takes only a-z 0-9 _ -")
            elif len(key) != 3:
                self._problems.append(
                    f'{written.where}: must be a table with a class: [{registry}.{name}] class = "module:Class"'
                )
            else:
                grouped.setdefault(name, {})[key[2]] = written
        return {name: table for name, keys in grouped.items() if (table := self._table(registry, name, keys))}

    def _table(self, registry: str, name: str, keys: dict[str, Written]) -> ServiceTable | None:
        class_name = keys.pop("class", None)
        if class_name is None:
            standard = (STANDARD_SERVICES if registry == "services" else STANDARD_BACKEND).get(name)
            example = "module:Class" if standard is None else standard.class_name
            where = next(iter(keys.values())).where
            self._problems.append(f'{where}: needs {spell((registry, name, "class"))}: add class = "{example}"')
            return None
        if not isinstance(class_name.value, str) or not re.fullmatch(r"[\w.]+:\w+", class_name.value):
            self._problems.append(
                f'{class_name.where}: must be "module:Class", like "snorky.services.pubsub:PubSubService"'
            )
            return None
        options = {option: written.guessed() for option, written in keys.items()}
        return ServiceTable(class_name.value, MappingProxyType(options))

    def _refuse_unknown(self) -> None:
        sections: dict[Key, type] = {
            (): Settings,
            ("public",): Public,
            ("private",): Private,
            ("auth",): Auth,
            ("limits",): Limits,
            ("hooks",): Hooks,
            **{("hooks", name): kind for name, kind in HOOK_TABLES.items()},
        }
        tables = ("services", "backend", *(table[0] for table in sections if table))
        known = [
            (*table, member.name)
            for table, section in sections.items()
            for member in fields(section)
            if member.name not in tables and (*table, member.name) not in sections
        ]
        for key, written in self._written.items():
            if written.is_text and len(key) == 1:
                self._judge_variable(key[0], written, known)
                continue
            if key in sections or (len(key) == 1 and key[0] in tables):
                self._problems.append(f"{written.where}: must be a table: [{'.'.join(key)}]")
                continue
            same_name = [spell(other) for other in known if other[-1] == key[-1]]
            spelt = {spell(other): ".".join(other) for other in known}
            near = difflib.get_close_matches(".".join(key), spelt.values(), n=1, cutoff=0.6)
            near = same_name or [text for text, dotted in spelt.items() if dotted in near]
            hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(_siblings(key, known))}"
            self._problems.append(f"{written.where}: unknown setting; {hint}")

    def _judge_variable(self, name: str, written: Written, known: list[Key]) -> None:
        """Refuse a variable that resembles a setting; warn about others: other programs share the environment."""
        variables = {variable_of(key): key for key in known}
        collapsed = {re.sub("_+", "_", variable_of(old)).lower(): variable_of(new) for old, new in OLD_NAMES.items()}
        collapsed |= {re.sub("_+", "_", variable).lower(): variable for variable in variables}
        wanted = re.sub("_+", "_", f"snorky_{name}")
        near = [collapsed[wanted]] if wanted in collapsed else []
        near = near or [variable for variable, key in variables.items() if key[-1] == name]
        near = near or [collapsed[each] for each in difflib.get_close_matches(wanted, collapsed, n=1, cutoff=0.85)]
        if wanted.startswith("snorky_services_") or (
            wanted.startswith("snorky_backend_") and wanted.endswith("_class")
        ):
            near = [variable_of((wanted.split("_")[1], "NAME", "class"))]
        if name == "api_key":  # the former name of a setting of the Django library, so perhaps not a mistake
            self._ignored.append(f"{written.where}: not read by a node; did you mean SNORKY_PRIVATE__API_KEY?")
        elif near:
            self._problems.append(f"{written.where}: unknown setting; did you mean {' or '.join(near)}?")
        else:
            self._ignored.append(f"{written.where}: not read by a node, and similar to none of its settings")


def _siblings(key: Key, known: list[Key]) -> list[str]:
    table = key[:-1]
    return [other[-1] for other in known if other[:-1] == table] or [spell(other) for other in known if len(other) == 1]
