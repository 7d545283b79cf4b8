"""Commands: the methods of a service that clients may call, and their parameters.

@rpc_command
def sum(self, request, a, b): ...

@rpc_command(name="sumAll")
def sum_all(self, request, numbers): ...
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

from snorky.gateway import ConfigurationError

__all__ = ["Command", "commands_of", "rpc_command"]

_MARK = "_rpc_command"  # True, or the command's name if it is not the method's
_F = TypeVar("_F", bound=Callable[..., Any])


@overload
def rpc_command(function: _F, /) -> _F: ...


@overload
def rpc_command(*, name: str) -> Callable[[_F], _F]: ...


def rpc_command(function: _F | None = None, /, *, name: str = "") -> _F | Callable[[_F], _F]:
    """Mark a method `(self, request, ...)` as a command that clients may call. name: the method's unless given."""

    def mark(function: _F) -> _F:
        setattr(function, _MARK, name or True)
        return function

    return mark if function is None else mark(function)


class Command:
    """A command and its parameters. Raises ConfigurationError: the method's signature does not suit a command."""

    __slots__ = ("_allowed", "_required", "_taken", "function", "name")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function
        parameters = list(inspect.signature(getattr(function, "__func__", function)).parameters.values())
        count = 2 if inspect.ismethod(function) else 1  # self and the request
        own = [each for each in parameters[:count] if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
        takes_own = len(own) == count or any(each.kind is each.VAR_POSITIONAL for each in parameters)
        parameters = parameters[len(own) :]
        if not takes_own or any(each.kind is each.POSITIONAL_ONLY for each in parameters):
            raise ConfigurationError(f"command {name!r}: write (self, request, ...), with parameters that have names")
        named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
        takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
        self._allowed = None if takes_any else {each.name for each in named}
        self._required = {each.name for each in named if each.default is each.empty}
        self._taken = {each.name for each in own if each.kind is not each.POSITIONAL_ONLY}  # never from the peer

    def fits(self, params: dict[str, Any]) -> bool:
        """Return whether the parameters fit the method's signature."""
        if self._allowed is None:
            return self._required.issubset(params) and self._taken.isdisjoint(params)
        return self._required.issubset(params) and self._allowed.issuperset(params)


def commands_of(service: object) -> dict[str, Command]:
    """Return the commands of a service, by name. Raises ConfigurationError: two methods have the same command name."""
    found: dict[str, Command] = {}
    for attribute, function in inspect.getmembers(type(service), lambda member: hasattr(member, _MARK)):
        mark = getattr(function, _MARK)
        name = attribute if mark is True else mark
        if name in found:
            raise ConfigurationError(f"{service!r}: two methods are the command {name!r}")
        found[name] = Command(name, getattr(service, attribute))
    return found
