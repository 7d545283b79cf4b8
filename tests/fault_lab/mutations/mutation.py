"""Mutation: one guard of the gateway, how it is removed, and what must fail without it."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Mutation", "fault", "mutate", "node_test", "test"]


@dataclass(frozen=True, slots=True)
class Mutation:
    """One guard. file, old, new: the text that is removed and its replacement. argv: a command that must then fail."""

    guard: str
    file: str
    old: str
    new: str
    argv: tuple[str, ...]

    @property
    def row(self) -> str:
        """What must fail, for people: the row's key, or the test's name."""
        return self.argv[-1].removeprefix("test_").replace("_", " ")


def fault(key: str) -> tuple[str, ...]:
    """Run one row of the laboratory."""
    return ("-m", "tests.fault_lab", "faults", "--small", "--only", key)


def test(path: str, name: str) -> tuple[str, ...]:
    """Run the tests of a file that match."""
    return ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", path, "-k", name)


def node_test(file: str) -> tuple[str, ...]:
    """Run a test file of the JavaScript client."""
    return ("-m", "tests.fault_lab.node_test", file)


def mutate(tree: Path, mutation: Mutation) -> None:
    """Remove the guard. Raises AssertionError: its text does not occur exactly once."""
    path = tree / mutation.file
    text = path.read_text(encoding="utf-8")
    count = text.count(mutation.old)
    assert count == 1, f"{mutation.guard}: its text stands {count} times in {mutation.file}, not once:\n{mutation.old}"
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
