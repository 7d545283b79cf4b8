"""The command `snorky`."""

from typing import Annotated

import typer

from snorky.gateway._version import __version__
from snorky.gateway.runtime.commands.capacity import capacity
from snorky.gateway.runtime.commands.check import check
from snorky.gateway.runtime.commands.importing import import_app
from snorky.gateway.runtime.commands.publish import publish
from snorky.gateway.runtime.commands.serve import serve
from snorky.gateway.runtime.commands.stats import stats
from snorky.gateway.runtime.commands.subscribe import subscribe
from snorky.gateway.runtime.commands.token import token
from snorky.gateway.runtime.standard_streams import open_missing_streams

__all__ = ["app", "main"]

app = typer.Typer(
    name="snorky",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, which hold payloads and tokens
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"snorky {__version__}")
        raise typer.Exit


@app.callback()
def _snorky(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A real-time gateway: WebSocket clients on many nodes, fan-out through Redis.

    Settings come from a TOML file (--config or SNORKY_CONFIG) and from the environment, which overrides the file:
    `[public] port` is SNORKY_PUBLIC__PORT.

    Examples:

        snorky serve --demo

        snorky subscribe news

        snorky publish news '{"title": "Hello"}'
    """


for _command in (serve, check, publish, subscribe, stats, token, capacity):
    app.command()(_command)
app.add_typer(import_app, name="import")


def main() -> None:
    """Run the command line."""
    open_missing_streams()
    app()


if __name__ == "__main__":
    main()
