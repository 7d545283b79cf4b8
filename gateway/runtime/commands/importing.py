"""snorky import: translates the configuration of another server into settings."""

from pathlib import Path
from typing import Annotated

import typer

from snorky.gateway.config.importers.centrifugo import translate
from snorky.gateway.errors import InvalidInput
from snorky.gateway.protocol.codec import decode_json
from snorky.gateway.runtime.commands.common import fail

__all__ = ["import_app"]

import_app = typer.Typer(no_args_is_help=True, help="Translate the configuration of another server into settings.")


@import_app.callback()
def _import() -> None:
    """Translate the configuration of another server into settings."""


@import_app.command()
def centrifugo(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Centrifugo's configuration, JSON.", show_default=False)],
) -> None:
    """Print settings for a configuration of Centrifugo; and on standard error what has no equivalent.

    Example:

        snorky import centrifugo config.json > snorky.toml && snorky check --config snorky.toml
    """
    try:
        config = decode_json(file.read_bytes())
        found = translate(config if isinstance(config, dict) else {"": config})
    except OSError as error:
        fail(f"{file}: {error.strerror}", code=2)
    except (InvalidInput, ValueError) as error:
        fail(f"{file} is no configuration of Centrifugo in JSON: {error}", code=2)
    typer.echo(found.settings, nl=False)
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
