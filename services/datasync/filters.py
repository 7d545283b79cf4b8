"""Filters: expressions in prefix notation over the fields of a model, compiled once. Pure.

    ["==", "color", "blue"]
    ["and", ["==", "service", "prosody"], [">=", "severity.level", 3]]
    ["or", ["not", ["==", "service", "java"]], ["<", "age", 21]]

Rules:
- Fields are dotted: "player.color" is the color of the player. A comparison with a field that is missing or has
  another type is false, so `not` of it is true.
- Equality is that of JSON entities: 1 equals 1.0 but not true. `<` and the like compare two numbers or two strings.
- An expression's *anchors* are equality comparisons (field and value), at least one of which must be true for it to
  match. An index of anchors finds the filters that may match a model; the others are not evaluated.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final

from snorky.gateway import Refused

__all__ = ["MISSING", "BadQuery", "Filter", "Path", "compile_filter", "field_of", "key_of"]

Path = tuple[str, ...]
Predicate = Callable[[Any], bool]
Anchors = frozenset[tuple[Path, Hashable]]

MISSING: Final = object()  # the value of a missing field
_ORDERS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


class BadQuery(Refused):
    """The dealer cannot use this query."""

    code = "invalid_query"

    def __init__(self) -> None:
        super().__init__("Invalid query")


@dataclass(frozen=True, slots=True)
class Filter:
    """A compiled expression. anchors: None = it may match any model. is_exact: one true anchor is enough to match."""

    matches: Predicate
    anchors: Anchors | None
    is_exact: bool = False


def compile_filter(expression: Any) -> Filter:
    """Compile an expression. Raises BadQuery: it is not valid."""
    match expression:
        case ["==", str(field), value]:
            path, key = tuple(field.split(".")), key_of(value)
            return Filter(lambda model: _is(field_of(model, path), key), frozenset(((path, key),)), is_exact=True)
        case ["<" | "<=" | ">" | ">=" as name, str(field), value]:
            return Filter(_comparison(_ORDERS[name], tuple(field.split(".")), value), None)
        case ["not", inner]:
            negated = compile_filter(inner).matches
            return Filter(lambda model: not negated(model), None)
        case ["and", *inner]:
            return _all_of([compile_filter(each) for each in inner])
        case ["or", *inner]:
            return _any_of([compile_filter(each) for each in inner])
    raise BadQuery


def field_of(model: Any, path: Path) -> Any:
    """Return a model's field; MISSING if it has none."""
    for name in path:
        if not isinstance(model, dict) or name not in model:
            return MISSING
        model = model[name]
    return model


def key_of(value: Any) -> Hashable:
    """Return a hashable key of a JSON entity: two keys are equal iff the entities are."""
    if isinstance(value, bool):
        return bool, value  # True == 1 in Python, but not in JSON
    if isinstance(value, list | tuple):
        return list, *map(key_of, value)
    if isinstance(value, dict):
        return dict, frozenset((name, key_of(each)) for name, each in value.items())
    key: Hashable = value
    return key


def _is(value: Any, key: Hashable) -> bool:
    return value is not MISSING and key_of(value) == key


def _comparison(is_so: Callable[[Any, Any], bool], path: Path, value: Any) -> Predicate:
    kinds: type | tuple[type, ...] = str if isinstance(value, str) else (int, float)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return lambda model: False  # nothing is less than null

    def matches(model: Any) -> bool:
        found = field_of(model, path)
        return isinstance(found, kinds) and not isinstance(found, bool) and is_so(found, value)

    return matches


def _all_of(filters: list[Filter]) -> Filter:
    predicates = [each.matches for each in filters]
    anchored = [each.anchors for each in filters if each.anchors is not None]
    return Filter(lambda model: all(matches(model) for matches in predicates), min(anchored, key=len, default=None))


def _any_of(filters: list[Filter]) -> Filter:
    predicates = [each.matches for each in filters]
    anchors: Anchors | None = frozenset()
    for each in filters:
        anchors = None if anchors is None or each.anchors is None else anchors | each.anchors
    is_exact = all(each.is_exact for each in filters)
    return Filter(lambda model: any(matches(model) for matches in predicates), anchors, is_exact)
