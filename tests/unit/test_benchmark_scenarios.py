"""The scenarios that only a person runs still fit the code that they measure."""

from collections.abc import Callable

import pytest

from benchmarks.scenarios.rendering import variants


@pytest.mark.parametrize("encode", [pytest.param(each, id=name) for name, each in variants().items()])
def test_each_variant_of_rendering_encodes_a_publication(encode: Callable[[], object]) -> None:
    assert isinstance(encode(), bytes)
