"""The shipped deployment as data: the contents of Dockerfile and compose file; secrets and redis.conf for a test."""

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support.processes.nodes import GATEWAY, clean_environment
from tests.support.processes.tools import ROOT

__all__ = [
    "DEPLOY",
    "compose",
    "container_argv",
    "final_stage",
    "health_check",
    "image_environment",
    "image_value",
    "instructions",
    "make_secrets",
    "manifests",
    "redis_conf",
    "run",
]

DEPLOY = ROOT / "deploy"


def run(*argv: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return its output. Only the limit of the test ends it: these have a low priority."""
    return subprocess.run(argv, cwd=cwd, text=True, capture_output=True, env=clean_environment(env))


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(name.upper(), rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def final_stage() -> list[tuple[str, str]]:
    found = instructions()
    last = max(index for index, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


def image_value(name: str) -> str:
    (value,) = [rest for each, rest in final_stage() if each == name]
    return value


def image_environment() -> dict[str, str]:
    pairs = [pair for name, rest in final_stage() if name == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def compose() -> dict[str, Any]:
    """The compose file as an engine reads it: variables at their defaults, anchors merged."""
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    text = re.sub(r"(?<!\$)\$\{\w+:-([^}]*)\}", r"\1", text)
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def container_argv(command: Sequence[str]) -> list[str]:
    """The command of a container: the image's entry point, whose `snorky` is the one of this environment."""
    entrypoint = json.loads(image_value("ENTRYPOINT"))
    assert entrypoint == ["snorky"]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts["snorky"] == f"{GATEWAY[-1]}:main"
    return [*GATEWAY, *command]


def health_check() -> list[str]:
    """The image's health check, in exec form."""
    check = image_value("HEALTHCHECK")
    argv: list[str] = json.loads(check[check.index("CMD") + 3 :])
    return argv


def manifests() -> list[dict[str, Any]]:
    """The Kubernetes objects."""
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))


def make_secrets(directory: Path, redis_port: int = 6379) -> Path:
    """Make a deployment's secrets as an operator does; the Redis URLs name a server on loopback."""
    script = str(DEPLOY / "make-secrets.sh")
    result = run("sh", script, str(directory), env={"SNORKY_DEPLOY_REDIS": f"127.0.0.1:{redis_port}/0"})
    assert result.returncode == 0, result.stderr
    return directory


def redis_conf(directory: Path, secrets: Path, port: int) -> Path:
    """Write the shipped redis.conf with this test's folders and port."""
    text = (DEPLOY / "redis" / "redis.conf").read_text(encoding="utf-8")
    (directory / "data").mkdir()
    for shipped, here in (
        ("\nport 6379\n", f"\nport {port}\n"),
        ("\nbind * -::*\n", "\nbind 127.0.0.1\n"),
        ("\ndir /data\n", f"\ndir {directory / 'data'}\n"),
        ("\naclfile /etc/redis/users.acl\n", f"\naclfile {secrets / 'users.acl'}\n"),
    ):
        assert text.count(shipped) == 1, shipped
        text = text.replace(shipped, here)
    conf = directory / "redis.conf"
    conf.write_text(text, encoding="utf-8")
    return conf
