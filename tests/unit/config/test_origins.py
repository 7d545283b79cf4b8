"""Allowed origins: values of the setting, and headers that browsers send."""

import pytest

from snorky.gateway.config.origins import Origins, parse_origins


@pytest.mark.parametrize(
    ("allowed", "good", "bad"),
    [
        (
            "https://*.example.org",
            ["https://a.example.org", "https://a.b-c.example.org", "https://xn--bcher-kva.example.org"],
            [
                "https://example.org",
                "http://a.example.org",
                "https://a.example.org:8443",
                "https://evilexample.org",
                "https://a.example.org.evil.net",
                "https://evil.net/.example.org",
                "https://evil.net#.example.org",
                "https://evil.net:1.example.org",
                "https://u@evil.net\\.example.org",
                "https://.example.org",
                "https://a..example.org",
                "https://*.example.org",
                "https://a.example.org\n",
                "null",
                "",
            ],
        ),
        ("https://*.example.org:8443", ["https://a.example.org:8443"], ["https://a.example.org"]),
        ("http://*.localhost:3000", ["http://app.localhost:3000"], ["http://localhost:3000"]),
        ("capacitor://localhost", ["capacitor://localhost"], ["ionic://localhost", "https://localhost"]),
        ("chrome-extension://abcdefghijklmnop", ["chrome-extension://abcdefghijklmnop"], ["chrome-extension://b"]),
        ("null", ["null"], ["https://null", ""]),
        ("https://App.example.org:443", ["https://app.example.org"], ["https://app.example.org:443"]),
        ("http://[0:0::1]:80", ["http://[::1]"], ["http://[::2]"]),
    ],
)
def test_an_entry_allows_the_browsers_origin_and_no_similar_one(allowed: str, good: list[str], bad: list[str]) -> None:
    origins = Origins(parse_origins([allowed]))
    assert [origin for origin in good if origin not in origins] == []
    assert [origin for origin in bad if origin in origins] == []


@pytest.mark.parametrize(
    "entry",
    [
        "*.example.org",
        "https://*",
        "https://*.org",
        "https://*.1.2.3.4",
        "https://a.*.example.org",
        "https://*a.example.org",
        "https://*.*.example.org",
        "*://a.example.org",
        "https://a.example.org:*",
        "https://bücher.example",
        "file://",
        "file:///",
        "https://a.example/",
        "https://a.example?x",
        "https://a.example:",
        "https://a.example:0",
        "https://u@a.example",
        "https://a b.example",
        "https://[::g]",
        "NULL",
        "",
    ],
)
def test_an_entry_that_can_never_match_is_refused_with_a_correction(entry: str) -> None:
    with pytest.raises(ValueError, match="write"):
        parse_origins([entry])
