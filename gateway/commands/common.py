"""What the commands share: the console, the settings, and how a problem is told."""

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from gateway.errors import ConfigurationError
from gateway.settings import Settings, load

__all__ = ["ChannelIsJson", "Config", "Insecure", "ServiceName", "errors", "fail", "output", "read_settings"]

# into a pipe or a file tables are not cut to a width that nobody looks at
output = Console(soft_wrap=True, highlight=False, width=None if sys.stdout is not None and sys.stdout.isatty() else 200)
errors = Console(stderr=True, soft_wrap=True, highlight=False)

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Settings, TOML. Default: what SNORKY_CONFIG names.", metavar="FILE"),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Anybody who reaches the public port may connect.")]
ServiceName = Annotated[str, typer.Option("--service", "-s", help="The pub/sub service's name.", metavar="NAME")]
ChannelIsJson = Annotated[bool, typer.Option("--json-channel", help="CHANNEL is JSON, like '[\"room\", 5]'.")]


def fail(*problems: str, code: int = 1) -> NoReturn:
    """Tell every problem and end the command. code: 1 a problem, 2 wrong use."""
    for problem in problems:
        errors.print("[bold red]error:[/]", end=" ")
        errors.print(problem, markup=False)
    raise typer.Exit(code)


def read_settings(config: Path | None) -> Settings:
    """Load the settings, or end the command with what is wrong with them."""
    doubts: list[str] = []
    try:
        settings = load(config, os.environ, doubts)
        for doubt in doubts:
            errors.print("[bold yellow]warning:[/]", end=" ")
            errors.print(doubt, markup=False)
        return settings
    except ConfigurationError as error:
        fail(*str(error).splitlines())
