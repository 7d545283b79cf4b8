"""SocketDirectory: short, private, locked, removed; a clear error if there is no place for it."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from snorky.gateway.socket_directory import SOCKET_PATH_MAX_BYTES, NoDirectory, SocketDirectory


@pytest.fixture
def short_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as path:
        yield Path(path)


def test_it_is_private_and_is_removed(short_path: Path) -> None:
    with SocketDirectory("snorky-t-", [str(short_path)]) as directory:
        assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
        assert directory.path.parent == short_path
    assert not any(short_path.iterdir())
    directory.remove()


def test_a_place_that_is_too_long_or_missing_or_no_folder_is_passed_over(short_path: Path) -> None:
    long = short_path / ("x" * 105)
    long.mkdir()
    plain = short_path / "file"
    plain.touch()
    with SocketDirectory("snorky-t-", [str(long), "/nowhere", str(plain), str(short_path)]) as directory:
        assert directory.path.parent == short_path
        assert len(os.fsencode(directory.path / "socket")) <= SOCKET_PATH_MAX_BYTES


def test_without_any_place_the_error_names_each_and_the_way_out(short_path: Path) -> None:
    with pytest.raises(NoDirectory) as raised:
        SocketDirectory("snorky-t-", ["/nowhere", "/" + "x" * 104])
    text = str(raised.value)
    assert "/nowhere: No such file or directory" in text and "has more than" in text
    assert "set TMPDIR to a short, writable path" in text


def test_tmpdir_is_taken_first(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(short_path))
    with SocketDirectory("snorky-t-") as directory:
        assert directory.path.parent == short_path
