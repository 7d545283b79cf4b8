"""Settings from a text, and the problems that they have."""

from pathlib import Path

import pytest

from snorky.gateway.config.settings import (
    Settings,
    load,
)
from snorky.gateway.errors import ConfigurationError

SECRET = "a secret of more than thirty-two bytes"


def load_toml(tmp_path: Path, text: str, **environ: str) -> Settings:
    path = tmp_path / "snorky.toml"
    path.write_text(text, encoding="utf-8")
    return load(path, environ)


def problems_of(tmp_path: Path, text: str = "", **environ: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_toml(tmp_path, text, **environ)
    return str(caught.value).splitlines()


def only_problem_of(tmp_path: Path, text: str = "", **environ: str) -> str:
    problems = problems_of(tmp_path, text, **environ)
    assert len(problems) == 1, problems
    return problems[0]
