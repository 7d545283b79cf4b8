"""Shared by the commands: consoles, common options, reading settings and secrets, reporting problems."""

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from snorky.gateway.config.secrets import check_visible, without_file_marks
from snorky.gateway.config.settings import Settings, load
from snorky.gateway.errors import ConfigurationError

__all__ = [
    "ChannelIsJson",
    "Config",
    "Insecure",
    "ServiceName",
    "environment_with",
    "errors",
    "fail",
    "output",
    "read_secret",
    "read_settings",
    "url_of_node",
]

# in a pipe or a file, do not cut tables to the width of a terminal
output = Console(soft_wrap=True, highlight=False, width=None if sys.stdout is not None and sys.stdout.isatty() else 200)
errors = Console(stderr=True, soft_wrap=True, highlight=False)

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Settings, a TOML file. Default: the file in SNORKY_CONFIG.", metavar="FILE"),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow anyone who can reach the public port to connect.")]
ServiceName = Annotated[str, typer.Option("--service", "-s", help="Name of the pub/sub service.", metavar="NAME")]
ChannelIsJson = Annotated[bool, typer.Option("--json-channel", help="CHANNEL is JSON, such as '[\"room\", 5]'.")]


def read_secret(text: str | None, option: str) -> str | None:
    """Return the secret of an option: its text, the content of @FILE, or for "-" a line of standard input.

    Ends the command if the secret is empty or cannot be read.
    """
    if text is None:
        return None
    try:
        if text == "-":
            text = without_file_marks(sys.stdin.readline())
        elif text.startswith("@"):
            text = without_file_marks(Path(text[1:]).read_text(encoding="utf-8"))
        check_visible(text)
    except OSError as error:
        fail(f"{option}: the file cannot be read: {error.strerror}", code=2)  # its name may be a secret
    except UnicodeDecodeError:
        fail(f"{option}: the input is not UTF-8 text", code=2)
    except ValueError as error:
        fail(f"{option} {error}", code=2)
    if not text:
        fail(f"{option} is empty", code=2)
    return text


def url_of_node(host: str, port: int) -> str:
    """Return host and port, without a scheme, to connect to a node on this machine."""
    host = "127.0.0.1" if host in ("", "0.0.0.0") else "::1" if host == "::" else host  # noqa: S104 - compared only
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def fail(*problems: str, code: int = 1) -> NoReturn:
    """Print every problem and end the command. code: 1 a problem, 2 wrong usage."""
    for problem in problems:
        errors.print("[bold red]error:[/]", end=" ")
        errors.print(problem, markup=False)
    raise typer.Exit(code)


def environment_with(**public: object) -> dict[str, str]:
    """Return the environment with values that override [public]; None overrides nothing."""
    environment = dict(os.environ)
    for name, value in public.items():
        if value is not None:
            environment.pop(f"SNORKY_PUBLIC__{name.upper()}_FILE", None)
            environment[f"SNORKY_PUBLIC__{name.upper()}"] = str(value)
    return environment


def read_settings(config: Path | None, **public: object) -> Settings:
    """Load the settings, or print the problems and end the command. public: values that override [public]."""
    ignored: list[str] = []
    try:
        settings = load(config, environment_with(**public), ignored)
        for text in ignored:
            errors.print("[bold yellow]warning:[/]", end=" ")
            errors.print(text, markup=False)
        return settings
    except ConfigurationError as error:
        fail(*str(error).splitlines())
