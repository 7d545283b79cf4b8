"""Old names: modules that were imported as `gateway`, `services` or `snorky` before they had one root.

Folders of these names may be a shop's own: what such a module has is taken from it, whatever ours is called.
"""

import importlib
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

__all__ = ["advice", "new_name"]

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
