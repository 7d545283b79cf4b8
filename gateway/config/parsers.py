"""Parsers of single settings: networks, hosts, URLs.

Each `parse_*` converts the written value to the stored one. The text of its ValueError continues a sentence that
begins with the setting's name: what is wrong, and what to write. It never quotes the value.
"""

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

__all__ = [
    "PROTOCOLS",
    "SOCKJS_CLIENT_URL",
    "Network",
    "is_loopback",
    "parse_backend_url",
    "parse_host",
    "parse_https_url",
    "parse_native_fanout",
    "parse_networks",
    "parse_prefix",
    "parse_protocols",
    "parse_redis_url",
    "parse_script_url",
    "split_redis_urls",
]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# the version that our tests run; pages load it with its hash, so a changed script at this address is not executed
SOCKJS_CLIENT_URL = "https://cdn.jsdelivr.net/npm/sockjs-client@1.6.1/dist/sockjs.min.js"

PROTOCOLS = ("sse", "raw", "centrifuge", "pusher")  # beside WebSocket and SockJS with Snorky's own

_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")  # no braces (hash tags) and no globs: ACL patterns contain it


def parse_networks(value: list[str]) -> tuple[Network, ...]:
    """Parse networks in CIDR form; an address alone is a network of one address."""
    try:
        return tuple(ipaddress.ip_network(text) for text in value)
    except ValueError:
        raise ValueError('has an entry that is not a network; write ["10.0.0.0/8"], with the host bits zero') from None


def parse_host(value: str) -> str:
    """Parse a host name or an address; "" = all addresses."""
    if value != value.strip() or any(character in value for character in "/[] \t"):
        raise ValueError('is not a host name or address; write "127.0.0.1", "::1", or "" for all')
    return value


def parse_https_url(value: str, because: str) -> str:
    """Parse a URL whose server must be authentic. because: why, for the error's text."""
    try:
        parts = urlsplit(value)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme == "http" and is_loopback(parts.hostname or ""):
        return value
    if parts.scheme != "https" or not parts.hostname:
        raise ValueError(f"must begin with https:// (http:// only on loopback): {because}")
    return value


def parse_backend_url(value: str, because: str) -> str:
    """Parse a URL that nodes call. because: why its server must be authentic, for the error's text."""
    url = parse_https_url(value, because)
    parts = urlsplit(url)
    if parts.username is not None or parts.fragment:
        raise ValueError("must not have a user, a password or a fragment; requests are signed instead")
    if not value.isascii() or not value.isprintable() or " " in value or not _has_port(parts):
        raise ValueError("has characters that are not allowed in a URL, or a port that is not a number")
    return url


def _has_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


def parse_protocols(value: list[str]) -> tuple[str, ...]:
    """Parse the names of protocols."""
    for each in value:
        if each not in PROTOCOLS:
            raise ValueError(f"{each!r} is no protocol; known are {', '.join(PROTOCOLS)}")
    return tuple(dict.fromkeys(value))


def parse_script_url(value: str) -> str:
    """Parse the URL of a script, or a path on the same host."""
    parts = urlsplit(value)
    is_path = value.startswith("/") and not value.startswith("//")
    if not value.isprintable() or any(character in value for character in " \"'<>\\;"):
        raise ValueError("has characters that are not allowed in a URL")
    if not is_path and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError('is not the URL of a script; write "https://HOST/sockjs.min.js", or a path: "/sockjs.min.js"')
    return value


_REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")


def parse_redis_url(value: str | list[str]) -> str:
    """Parse the URL of one server, of its sentinels or of a Cluster, or a list of independent servers' URLs.

    "" = the embedded server. Several URLs are returned joined with commas; `split_redis_urls` splits them again.
    """
    urls = split_redis_urls(value) if isinstance(value, str) else [each.strip() for each in value]
    if urls == [""]:
        return ""
    for url in urls:
        scheme = url.partition("://")[0]
        if scheme.endswith("+cluster") and len(urls) > 1:
            raise ValueError("names a Cluster and others: name its servers in one URL, redis+cluster://HOST:PORT,...")
        if scheme not in _REDIS_SCHEMES or url == f"{scheme}://":
            raise ValueError('is no Redis URL; write "redis://127.0.0.1:6379/0", rediss:// for TLS, or "" for embedded')
    if not urls:
        raise ValueError('is an empty list; write "redis://127.0.0.1:6379/0", or "" for embedded')
    return ",".join(urls)


def split_redis_urls(value: str) -> list[str]:
    """Split at commas that a scheme follows, not at those between the addresses of sentinels."""
    return [each.strip() for each in re.split(r",\s*(?=[a-z+]+://)", value)]


def parse_native_fanout(value: str) -> str:
    """Parse how the extension module may send: by io_uring if that is allowed, only by send(), or not at all."""
    if value not in ("auto", "send", "off"):
        raise ValueError('must be "auto", "send" or "off"')
    return value


def parse_prefix(value: str) -> str:
    """Parse the prefix of all Redis names of this deployment."""
    if not _PREFIX.fullmatch(value):
        raise ValueError("takes 1 to 64 letters, digits and _ . : -")
    return value


def is_loopback(host: str) -> bool:
    """Return True if only this machine can connect to the host. Of names, only localhost counts as loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
