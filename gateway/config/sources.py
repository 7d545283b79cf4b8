"""Read the sources of settings, one TOML file and the environment, into one flat map of values and their origins.

Rules:
- It does nothing but read the files named to it. It knows how deep settings are nested, not which settings exist.
- The environment overrides the file: `SNORKY_PUBLIC__PORT` is `[public] port`, upper case, `__` for a dot.
- `SNORKY_X_FILE` names a file that holds the text of X (a mounted secret); line ends at its end and a byte-order
  mark are removed.
- Variables that Kubernetes adds for a Service called "snorky" (`SNORKY_PORT=tcp://...`, ...) are not settings, nor are
  the variables that the client library reads (`SNORKY_BACKEND_URL`, ...).
- A problem never quotes a value: it may be a secret.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from snorky.gateway.config.secrets import without_file_marks

__all__ = [
    "API_KEYS",
    "CONFIG_VARIABLE",
    "ENVIRONMENT_PREFIX",
    "FILE_SUFFIX",
    "PUSHER_APPS",
    "Key",
    "Written",
    "read_environment",
    "read_toml",
    "spell",
    "variable_of",
]

API_KEYS = ("private", "api_keys")  # a setting that is a table, of texts or of tables
PUSHER_APPS = ("public", "pusher_apps")  # a setting that is a table of tables
_TABLES_OF_TABLES = ("services", "backend", "hooks")  # tables of tables: a setting there has three names, not two
ENVIRONMENT_PREFIX = "SNORKY_"
CONFIG_VARIABLE = "SNORKY_CONFIG"  # names the file; not a setting itself
FILE_SUFFIX = "_FILE"

# Variables of Service links, which the kubelet makes from a Service's name; our settings contain "__" or do not match.
_SERVICE_LINK = re.compile(
    r"SNORKY_([A-Z0-9]+_)*(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)?)"
)

_OF_THE_LIBRARY = frozenset(  # read by snorky-client, perhaps in the same environment
    f"{ENVIRONMENT_PREFIX}{name}"
    for name in (
        *("BACKEND_URL", "BACKEND_KEY", "TIMEOUT_S", "JSON_ENCODER", "DATASYNC_SERVICE"),
        *("TOKEN_HMAC_SECRET", "TOKEN_PRIVATE_KEY", "TOKEN_KEY_ID"),
        *("TOKEN_AUDIENCE", "TOKEN_ISSUER", "TOKEN_IDENTITY_CLAIM"),
    )
)

Key = tuple[str, ...]  # ("public", "port")
_TEXT_OR_LIST = str | list[str]


@dataclass(frozen=True, slots=True)
class Written:
    """One value as it was written. `is_text`: from the environment, so JSON unless the setting is a string."""

    value: object
    where: str  # for people: "snorky.toml: [public] port" or "SNORKY_PUBLIC__PORT"
    is_text: bool = False

    def converted(self, wire: Any) -> Any:
        """Convert the value to the setting's type. Raises ValueError."""
        value = self.value
        is_json = wire is not str and (wire != _TEXT_OR_LIST or str(value).lstrip().startswith("["))
        if self.is_text and is_json:
            try:
                value = msgspec.json.decode(str(value))
            except ValueError:
                raise ValueError("is not JSON") from None
        try:
            value = msgspec.convert(value, wire)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)[:1].lower() + str(error)[1:]) from None
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("must be finite")
        return value

    def guessed(self) -> object:
        """Return a service's option. From the environment: decoded if it is JSON, else the text."""
        if not self.is_text:
            return self.value
        try:
            return msgspec.json.decode(str(self.value))
        except ValueError:
            return self.value

    def example(self, name: str, default: object, wire: Any) -> str:
        """Return a hint with an example: what to write instead."""
        sample = '"..."' if wire in (str, _TEXT_OR_LIST) else msgspec.json.encode(default).decode()
        sample = '["..."]' if wire == list[str] else sample
        return f"; write {self.where}='{sample}'" if self.is_text else f"; write {name} = {sample}"


def spell(key: Key) -> str:
    """Format a key as in TOML: `[public] port`, `[services.pubsub] class`."""
    return key[0] if len(key) == 1 else f"[{'.'.join(key[:-1])}] {key[-1]}"


def variable_of(key: Key) -> str:
    """Format a key as its environment variable: `SNORKY_PUBLIC__PORT`."""
    return ENVIRONMENT_PREFIX + "__".join(part if part == "NAME" else part.upper() for part in key)


def _is_service_link(variable: str, value: str) -> bool:
    """Return True for a variable of the kubelet; SNORKY_PUBLIC_PORT=9000 is not one, but a misspelt setting."""
    if not _SERVICE_LINK.fullmatch(variable):
        return False
    is_address = re.match(r"(tcp|udp|sctp)://", value) is not None
    return (
        is_address
        if variable.endswith("_PORT")
        and not variable.endswith(("_SERVICE_PORT", "_TCP_PORT", "_UDP_PORT", "_SCTP_PORT"))
        else True
    )


def read_toml(path: Path, problems: list[str]) -> dict[Key, Written]:
    """Read the file; if it cannot be read or is not TOML, add one problem and return nothing."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8").removeprefix("\ufeff"))
    except FileNotFoundError:
        problems.append(f"{path}: no such file; write one, or leave --config and {CONFIG_VARIABLE} out")
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        problems.append(f"{path}: is not UTF-8 at byte {error.start}; save it as UTF-8")
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{path}: is not TOML: {error}; strings need quotes, and tables [brackets]")
    else:
        return {key: Written(value, f"{path}: {spell(key)}") for key, value in _flatten(document)}
    return {}


def _flatten(document: Mapping[str, object]) -> list[tuple[Key, object]]:
    flat: list[tuple[Key, object]] = []
    for name, value in document.items():
        if not isinstance(value, dict):
            flat.append(((name,), value))
        elif name not in _TABLES_OF_TABLES:
            for inner, leaf in value.items():
                flat.extend(_leaves((name, inner), leaf, 2 if (name, inner) in (API_KEYS, PUSHER_APPS) else 0))
        else:
            for table, keys in value.items():
                if isinstance(keys, dict) and keys:
                    flat.extend(((name, table, inner), leaf) for inner, leaf in keys.items())
                else:
                    flat.append(((name, table), keys))
    return flat


def _leaves(key: Key, value: object, depth: int) -> list[tuple[Key, object]]:
    """Split a table, and the tables in it, into their values. depth: how many tables inside each other."""
    if not (depth and isinstance(value, dict) and value):
        return [(key, value)]
    return [leaf for name, inner in value.items() for leaf in _leaves((*key, name), inner, depth - 1)]


def read_environment(environ: Mapping[str, str], problems: list[str]) -> dict[Key, Written]:
    """Read every `SNORKY_` variable; for a `_FILE` variable, the content of its file."""
    written: dict[Key, Written] = {}
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == CONFIG_VARIABLE:
            continue
        if variable in _OF_THE_LIBRARY or _is_service_link(variable, environ[variable]):
            continue
        text, name = environ[variable], variable
        if variable.endswith(FILE_SUFFIX):
            name = variable.removesuffix(FILE_SUFFIX)
            if name in environ:
                problems.append(f"{name} and {variable} are both set; unset one of them")
                continue
            try:
                text = without_file_marks(Path(text).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
                problems.append(f"{variable}: the file it names cannot be read: {reason}")
                continue
        key = tuple(part.lower() for part in name.removeprefix(ENVIRONMENT_PREFIX).split("__"))
        written[key] = Written(text, variable, is_text=True)
    return written
