"""Reload: applies changed rules of the settings to a running node.

Rules:
- Either all changed rules are applied, or none: an error in the file leaves everything as it is.
- The rules of all services are replaced in one step of the event loop. Then the node looks at the subscriptions
  again, and ends those that are no longer permitted.
- Settings that cannot change while the node runs are named in a warning, and keep their values until a restart.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import structlog

from snorky.gateway.config.changes import Changes, changes_of
from snorky.gateway.config.pusher import with_rules
from snorky.gateway.config.service_tables import ServiceTable
from snorky.gateway.config.settings import Settings
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.http.protocols.pusher.websocket import demand_closed
from snorky.gateway.runtime.gateway import Gateway
from snorky.gateway.sdk.loading import load_service
from snorky.gateway.sdk.registry import ServiceRegistry
from snorky.gateway.sdk.service import Service

__all__ = ["Reloader"]

PROBLEMS_MAX: Final = 20  # in one log line
_log = structlog.get_logger("snorky.settings")


class Reloader:
    """Reads the settings again when `request` was called, and applies the changed rules to a gateway.

    settings: those that the gateway runs with. read: reads and checks them again, in a thread; raises
    ConfigurationError with all problems, one a line.
    """

    def __init__(self, gateway: Gateway, settings: Settings, read: Callable[[], Settings]) -> None:
        self._gateway = gateway
        self._running = settings
        self._read = read
        self._requested = asyncio.Event()

    def request(self) -> None:
        """Ask for a reload; returns at once. Requests before it begins count as one."""
        self._requested.set()

    async def run(self) -> None:
        """Reload at each request, until cancelled."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            try:
                await self.reload()
            except Exception:  # the top of a task: whatever a service raises, later requests must work
                self._count("failed")
                _log.exception("settings not reloaded")

    async def reload(self) -> None:
        """Read the settings, and apply what has changed. Problems are logged, and nothing is applied then."""
        try:
            written = await asyncio.to_thread(self._read)
            changes = changes_of(self._running, written)
            tables, names = self._divided(written, changes)
            others = ServiceRegistry()  # never attached: only their rules are used
            apps = self._running.public.pusher_apps or {}
            pairs = [
                (self._service(name), load_service("services", name, with_rules(name, table, apps), others))
                for name, table in tables.items()
            ]
            for app in apps.values():
                if app.service in others:
                    demand_closed(others, app)
        except ConfigurationError as error:
            self._count("failed")
            problems = str(error).splitlines()
            shown = {f"problem_{number}": text for number, text in enumerate(problems[:PROBLEMS_MAX], 1)}
            _log.error("settings not reloaded, the rules stay as they are", count=len(problems), **shown)
            return
        if names:
            _log.warning("changed settings need a restart", settings=", ".join(names))
        await self._gateway.node.replace_rules(pairs)
        self._running = replace(self._running, services=MappingProxyType({**self._running.services, **tables}))
        self._count("applied")
        _log.info("settings reloaded", changed=", ".join(sorted(tables)))

    def _divided(self, written: Settings, changes: Changes) -> tuple[dict[str, ServiceTable], list[str]]:
        """Divide the changes: tables of services with all options that can be applied now; names of the others."""
        tables, names = {}, list(changes.names)
        for name, options in changes.options.items():
            known = self._service(name).reloadable_options
            names += [f"[services.{name}] {option}" for option in options if option not in known]
            applied = [option for option in options if option in known]
            if applied:
                tables[name] = _with(self._running.services[name], written.services[name].options, applied)
        return tables, names

    def _service(self, name: str) -> Service:
        return self._gateway.public[name]

    def _count(self, outcome: str) -> None:
        self._gateway.node.metrics.settings_reloads.labels(outcome).inc()


def _with(table: ServiceTable, written: Mapping[str, object], options: list[str]) -> ServiceTable:
    """Return a table with some of its options as they are written now."""
    kept = {name: value for name, value in table.options.items() if name not in options}
    return replace(table, options={**kept, **{name: written[name] for name in options if name in written}})
