"""Load services and functions by the dotted names in the settings. Only this module imports code by name."""

import importlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from snorky.gateway.config.old_names import OPTIONS as OLD_OPTIONS
from snorky.gateway.config.pusher import with_rules
from snorky.gateway.config.settings import ServiceTable, Settings
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.sdk.old_names import advice, new_name
from snorky.gateway.sdk.registry import ServiceRegistry
from snorky.gateway.sdk.service import Service

__all__ = ["load_function", "load_registries", "load_service"]


def load_registries(settings: Settings) -> tuple[ServiceRegistry, ServiceRegistry]:
    """Create the public and the private registry. Raises ConfigurationError: every problem, one a line."""
    problems: list[str] = []
    apps = settings.public.pusher_apps or {}
    services = {name: with_rules(name, table, apps) for name, table in settings.services.items()}
    public = _registry("services", services, problems)
    private = _registry("backend", settings.backend, problems)
    if problems:
        raise ConfigurationError("\n".join(problems))
    return public, private


def load_service(table: str, name: str, written: ServiceTable, registry: ServiceRegistry) -> Service:
    """Create and register one service. table: "services" or "backend", for errors. Raises ConfigurationError."""
    where = f"[{table}.{name}]"
    try:
        service = _construct(_find(written.class_name), name, written.options)
        registry.register(service)
        return service
    except ConfigurationError as error:
        raise ConfigurationError(f"{where} {error}") from error
    except Exception as error:  # a user's module or constructor may raise anything: report it, do not crash
        text = f"{where} {written.class_name} failed with {type(error).__name__}: {error}{advice(error)}"
        raise ConfigurationError(text) from error


def load_function(setting: str, name: str) -> Callable[..., Awaitable[Any]]:
    """Import an async function. setting: its name, for errors; name: "module:function". Raises ConfigurationError."""
    module_name, _, function_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), function_name, None)
    except Exception as error:  # a user's module may raise anything: report it, do not crash
        help_ = advice(error) or "; is it on PYTHONPATH?"
        raise ConfigurationError(
            f'{setting} = "{name}": its module failed with {type(error).__name__}: {error}{help_}'
        ) from error
    if not inspect.iscoroutinefunction(found):
        raise ConfigurationError(f'{setting} = "{name}": the module has no async function {function_name}')
    return found


def _registry(table: str, services: Mapping[str, ServiceTable], problems: list[str]) -> ServiceRegistry:
    registry = ServiceRegistry()
    for name, written in services.items():
        try:
            load_service(table, name, written, registry)
        except ConfigurationError as error:
            problems.append(str(error))
    return registry


def _find(class_name: str) -> type[Service]:
    module_name, _, name = class_name.partition(":")
    if renamed := new_name(module_name, name):
        raise ConfigurationError(
            f'class = "{class_name}": {module_name} is now {renamed}: write class = "{renamed}:{name}"'
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists, but something that it imports does not
        raise ConfigurationError(
            f'class = "{class_name}": there is no module {error.name}; install it, or put its folder on PYTHONPATH'
        ) from error
    found = getattr(module, name, None)
    if found is None:
        raise ConfigurationError(f'class = "{class_name}": the module has no {name}')
    if not (inspect.isclass(found) and issubclass(found, Service)):
        raise ConfigurationError(f'class = "{class_name}": is no subclass of snorky.gateway.Service')
    return found


def _construct(service: type[Service], name: str, options: Mapping[str, object]) -> Service:
    try:
        inspect.signature(service).bind(name, **options)
    except TypeError as error:
        takes = [each for each in inspect.signature(service).parameters if each != "name"]
        for option in options:
            if option not in takes and OLD_OPTIONS.get(option) in takes:
                new = OLD_OPTIONS[option]
                raise ConfigurationError(f"{option} is now called {new}; write {new}") from error
        known = f"it takes {', '.join(takes)}" if takes else "it takes no further keys"
        raise ConfigurationError(f"does not fit {service.__name__}: {error}; {known}") from error
    return service(name, **options)
