"""Old names: attributes of services, and modules that were imported as `gateway`, `services` or `snorky`.

Folders of these names may be a shop's own: what such a module has is taken from it, whatever ours is called.
"""

import importlib
import inspect
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NoReturn

from snorky.gateway.errors import ConfigurationError

__all__ = ["OldAttribute", "advice", "new_name", "refuse_old_attributes"]

_OLD_ROOTS = ("gateway", "services")


def new_name(module: str, attribute: str) -> str | None:
    """Tell what one of our modules is called now, if `module` is its old name and no module of the user's has this
    attribute. Raises what a module of the user's raises when it is imported."""
    if not _is_old(module):
        return None
    ours, theirs = _find(f"snorky.{module}"), _find(module)
    if ours is None or not hasattr(importlib.import_module(f"snorky.{module}"), attribute):
        return None
    is_theirs = theirs is not None and not _is_same(ours, theirs)
    return None if is_theirs and hasattr(importlib.import_module(module), attribute) else f"snorky.{module}"


def advice(error: Exception) -> str:
    """Tell, of a program that imports an old name, the new one: `; gateway is now snorky.gateway`. "" for others."""
    if not isinstance(error, ImportError) or error.name is None:
        return ""
    root, _, rest = error.name.partition(".")
    if _is_old(error.name) and _find(f"snorky.{error.name}") is not None:
        return f"; {error.name} is now snorky.{error.name}"
    if root == "snorky" and rest.partition(".")[0] not in ("client", *_OLD_ROOTS):
        return f"; {error.name} is now {'.'.join(filter(None, ('snorky.client', rest)))}"
    return ""


class OldAttribute:
    """An attribute of a class under its old name: reading and setting it on an instance are errors with the new name.

    Without it, a service that says `is_open = False` could be used by anonymous clients.
    """

    def __init__(self, new: str) -> None:
        self.new: Final = new

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, service: object, owner: type) -> NoReturn:
        raise AttributeError(self.text(owner))

    def __set__(self, service: object, value: object) -> NoReturn:
        raise ConfigurationError(self.text(type(service)))

    def text(self, owner: type) -> str:
        """Say what the attribute of this class is called now."""
        return f"{owner.__name__}.{self._name} is now called {self.new}: rename it"


def refuse_old_attributes(base: type, made: type) -> None:
    """Refuse a subclass of `base` that defines one of its old attributes. Raises ConfigurationError."""
    for name, old in vars(base).items():
        if isinstance(old, OldAttribute) and inspect.getattr_static(made, name) is not old:
            raise ConfigurationError(old.text(made))


def _is_old(module: str) -> bool:
    return module.partition(".")[0] in _OLD_ROOTS


def _find(module: str) -> ModuleSpec | None:
    try:
        return find_spec(module)
    except ModuleNotFoundError as error:  # a package above it is not there
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        return None


def _is_same(one: ModuleSpec, other: ModuleSpec) -> bool:
    """Whether both are one file: in a checkout our folders can be found under their old names, by accident."""
    if one.origin is None or other.origin is None:
        return False
    return Path(one.origin).resolve() == Path(other.origin).resolve()
