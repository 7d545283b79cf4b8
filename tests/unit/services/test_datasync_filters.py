"""Filters of DataSync: the original's examples, and everything else against a trivial evaluator."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.services.datasync import BadQuery, FilterDealer, SubscriptionItem
from snorky.services.datasync.filters import compile_filter, key_of


def matches(expression: Any, model: Any) -> bool:
    return compile_filter(expression).matches(model)


def naive(expression: Any, model: Any) -> bool:
    """Evaluate as the documentation defines it."""
    name, *rest = expression
    if name == "not":
        return not naive(rest[0], model)
    if name == "and":
        return all(naive(each, model) for each in rest)
    if name == "or":
        return any(naive(each, model) for each in rest)
    field, value = rest
    for part in field.split("."):
        if type(model) is not dict or part not in model:
            return False
        model = model[part]
    if name == "==":
        return same(model, value)
    numbers = all(type(each) in (int, float) for each in (model, value))
    if not numbers and not all(type(each) is str for each in (model, value)):
        return False
    return {"<": model < value, "<=": model <= value, ">": model > value, ">=": model >= value}[name]


def same(a: Any, b: Any) -> bool:
    if type(a) in (int, float) and type(b) in (int, float):
        return a == b
    if type(a) is not type(b):
        return False
    if type(a) is list:
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) is dict:
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 1.0, 2, -1, "", "1", "a", "blue"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
FIELDS = st.sampled_from(["a", "b", "c", "a.b", "a.a", "b.a.b"])
MODELS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3) | VALUES
EXPRESSIONS = st.recursive(
    st.tuples(st.sampled_from(["==", "==", "<", "<=", ">", ">="]), FIELDS, VALUES).map(list),
    lambda inner: (
        st.tuples(st.just("not"), inner).map(list)
        | st.builds(lambda name, parts: [name, *parts], st.sampled_from(["and", "or"]), st.lists(inner, max_size=3))
    ),
    max_leaves=8,
)


@given(EXPRESSIONS, MODELS)
def test_compiled_filters_match_the_documentation(expression: Any, model: Any) -> None:
    assert matches(expression, model) == naive(expression, model)


class Things(FilterDealer):
    model = "Thing"


@given(st.lists(EXPRESSIONS, max_size=12), st.lists(st.booleans(), min_size=12, max_size=12), MODELS)
def test_index_finds_exactly_the_matching_filters(expressions: list[Any], kept: list[bool], model: Any) -> None:
    dealer = Things()
    items = [SubscriptionItem(None, "Things", expression) for expression in expressions]
    for item in items:
        dealer.add_subscription_item(item)
    for item, is_kept in zip(items, kept, strict=False):
        if not is_kept:
            dealer.remove_subscription_item(item)
    found = dealer.get_subscription_items_for_model(model)
    left = [item for item, is_kept in zip(items, kept, strict=False) if is_kept]
    assert set(found) == {item for item in left if naive(item.query, model)}
    for item in left:
        assert dealer.concerns(item, model) == (item in set(found))
        dealer.remove_subscription_item(item)
    assert not dealer._groups and not dealer._by_field and not dealer._unanchored


@given(VALUES, VALUES)
def test_keys_are_equal_iff_the_entities_are(a: Any, b: Any) -> None:
    assert (key_of(a) == key_of(b)) == same(a, b)
    if same(a, b):
        assert hash(key_of(a)) == hash(key_of(b))


@pytest.mark.parametrize(
    ("expression", "yes", "no"),
    [
        (["==", "color", "blue"], {"color": "blue"}, {"color": "red"}),
        (["==", "a", 1], {"a": 1.0}, {"a": True}),
        (["==", "a", 1], {"a": 1}, {"a": "1"}),
        (["<", "age", 21], {"age": 20}, {"age": 21}),
        (["<=", "age", 21], {"age": 21}, {"age": "20"}),
        ([">", "age", 21], {"age": 22}, {"age": 21}),
        ([">=", "age", 21], {"age": 21}, {"age": None}),
        (["<", "name", "b"], {"name": "a"}, {"name": 1}),
        (["and", ["==", "service", "prosody"], [">=", "level", 3]], {"service": "prosody", "level": 3}, {"level": 3}),
        (["or", ["not", ["==", "service", "java"]], [">=", "level", 3]], {}, {"service": "java", "level": 2}),
        (["==", "player.color", "blue"], {"player": {"color": "blue"}}, {"player.color": "blue"}),
        (["not", ["<", "a.b", 1]], {"a": 5}, {"a": {"b": 0}}),
    ],
)
def test_examples(expression: Any, yes: Any, no: Any) -> None:
    assert matches(expression, yes) and not matches(expression, no)


@pytest.mark.parametrize(
    "expression",
    [
        *(None, 1, "==", {}, {"foo": "bar"}, [], ["=="], ["==", "a"], ["==", "a", 1, 2], ["==", 1, 1], ["~", "a", 1]),
        *(["not"], ["not", ["==", "a", 1], ["==", "b", 1]], ["and", "a"], ["or", ["==", "a", 1], None]),
        [["=="], "a", 1],
    ],
)
def test_an_invalid_expression_is_refused(expression: Any) -> None:
    with pytest.raises(BadQuery):
        compile_filter(expression)
    with pytest.raises(BadQuery):
        Things().check_query(expression)


def test_a_model_touches_only_filters_that_it_may_match(monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 subscriptions, each to another room's open tasks: 1 filter is evaluated, not 10,000."""
    dealer = Things()
    for number in range(10_000):
        query = ["and", ["==", "room.id", number], ["or", ["<", "level", 3], ["not", ["==", "done", True]]]]
        dealer.add_subscription_item(SubscriptionItem(None, "Things", query))
    looked_at = 0
    for group in dealer._groups.values():
        inner = group.filter.matches

        def counted(model: Any, inner: Any = inner) -> bool:
            nonlocal looked_at
            looked_at += 1
            return bool(inner(model))

        object.__setattr__(group.filter, "matches", counted)
    (found,) = dealer.get_subscription_items_for_model({"room": {"id": 77}, "level": 1})
    assert json.dumps(found.query).startswith('["and", ["==", "room.id", 77]')
    assert looked_at == 1
