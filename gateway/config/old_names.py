"""Old names of settings. A node that finds one does not start: its error has the new name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from snorky.gateway.config.sources import FILE_SUFFIX, Key, Written, spell, variable_of

__all__ = ["CHANNEL_RULE", "OPTIONS", "SETTINGS", "take_renamed"]

SETTINGS: Final[Mapping[Key, Key]] = MappingProxyType(
    {
        ("auth", "deadline_s"): ("auth", "timeout_s"),
        ("auth", "identify"): ("auth", "identify_hook"),
        ("auth", "lifetime_max_s"): ("auth", "token_max_lifetime_s"),
        ("limits", "bad_messages_per_minute"): ("limits", "client_errors_per_minute"),
        ("limits", "handshake_timeout_s"): ("limits", "request_header_timeout_s"),
    }
)
CHANNEL_RULE: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {"notices": ("join_leave", "true"), "client_publish": ("allow_publish", '"nobody"')}
)  # keys of a channel rule, with an example of the new value
OPTIONS: Final[Mapping[str, str]] = MappingProxyType({"frontend": "service"})  # of services, in [backend.NAME]


def take_renamed(written: dict[Key, Written], problems: list[str]) -> None:
    """Move values from old names to new ones, so that later checks miss nothing; add a problem for each."""
    for old, new in SETTINGS.items():
        value = written.pop(old, None)
        if value is None:
            continue
        suffix = FILE_SUFFIX if value.is_text and value.where.endswith(FILE_SUFFIX) else ""
        place = variable_of(new) + suffix if value.is_text else spell(new)
        problems.append(f"{value.where}: is now called {new[-1]}; write {place}")
        written.setdefault(new, value)
