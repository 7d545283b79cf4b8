"""The peers of the benchmark: pinned versions, and what happens when one cannot be installed."""

from pathlib import Path

import pytest

from benchmarks.peers.install import VERSIONS, NotInstalled, cache_folder, installed, pinned
from benchmarks.peers.servers import PEERS, peers
from benchmarks.support.child import ChildFailed

NPM = """#!/bin/sh
echo "$@" >> "{log}"
if [ ! -e "{allowed}" ]; then
    mkdir half
    echo "npm error 404 no such package" >&2
    exit 1
fi
mkdir node_modules
"""


def test_each_peer_has_a_pinned_version_and_no_other_package_has() -> None:
    assert set(pinned(VERSIONS.read_text())) == {peer.package for peer in PEERS}


@pytest.mark.parametrize(
    "text", ['[npm]\nws = "^8.23.0"', '[npm]\nws = "latest"', '[npm]\nws = ""', '[gems]\nws = "8.23.0"']
)
def test_versions_that_are_not_exact_and_unknown_registries_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        pinned(text)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace npm by a script that notes its calls here, and fails until the file `allowed` exists beside."""
    npm = tmp_path / "bin/npm"
    npm.parent.mkdir()
    npm.write_text(NPM.format(log=tmp_path / "log", allowed=tmp_path / "allowed"))
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "log"


def test_failed_installation_says_why_and_is_done_again_until_it_succeeds(log: Path) -> None:
    with pytest.raises(NotInstalled, match="npm error 404 no such package"):
        installed("ws")
    assert list(cache_folder().iterdir()) == [], "nothing unfinished stays behind"
    log.with_name("allowed").touch()
    folder = installed("ws")
    assert folder.parent == cache_folder() and (folder / "node_modules").is_dir()
    assert installed("ws") == folder
    calls = log.read_text().splitlines()
    assert len(calls) == 2, "the last call found it installed"
    assert all("--ignore-scripts" in call and call.endswith("ws@" + folder.name.rpartition("-")[2]) for call in calls)


def test_peer_that_cannot_be_installed_fails_only_when_it_is_started(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.peers.servers.PEERS", [peer for peer in PEERS if peer.package == "ws"])
    (variant,) = peers(lambda text: None)
    with pytest.raises(ChildFailed, match="not installed: npm: npm error 404"):
        variant.start(1)
