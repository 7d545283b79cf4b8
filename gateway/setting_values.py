"""What single settings are made of: origins, networks, hosts, URLs, keys.

Each `parse_*` takes what was written and gives what is kept; it raises ValueError with a text that goes on
after the name of the setting: what is wrong, and what to write. The text never quotes the value.
"""

import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = [
    "SOCKJS_CLIENT_URL",
    "ApiKey",
    "Network",
    "is_loopback",
    "parse_host",
    "parse_networks",
    "parse_origins",
    "parse_prefix",
    "parse_redis_url",
    "parse_script_url",
    "split_redis_urls",
]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# the version that our tests run; its hash is known, so that nothing else at this address would be run
SOCKJS_CLIENT_URL = "https://cdn.jsdelivr.net/npm/sockjs-client@1.6.1/dist/sockjs.min.js"

_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")  # no braces (hash tags), no globs: it stands in ACL patterns


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The backend's key, known only as its SHA-256."""

    sha256: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> "ApiKey":
        """Take the key itself, or `sha256:` and 64 hex digits. Raises ValueError with what to write."""
        if text.startswith("sha256:"):
            digest = text.removeprefix("sha256:")
            if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
                raise ValueError("needs 64 hex digits after sha256:; make them with: printf %s KEY | sha256sum")
            return cls(bytes.fromhex(digest))
        if not text or text != text.strip():
            raise ValueError("is empty or has blanks around it; make one with: openssl rand -hex 32")
        return cls(hashlib.sha256(text.encode()).digest())

    def matches(self, presented: str) -> bool:
        """Compare in constant time with what a backend sent."""
        return hmac.compare_digest(self.sha256, hashlib.sha256(presented.encode("utf-8", "replace")).digest())


def _origin(text: str) -> str:
    """Bring an origin into the form that browsers send. Raises ValueError."""
    if text == "*":
        return text
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or text.count("/") != 2:
        raise ValueError('has an entry that is no origin; write scheme and host, no path: "https://app.example.org"')
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    is_default = port is None or port == {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" if is_default else f"{parts.scheme}://{host}:{port}"


def parse_origins(value: list[str]) -> tuple[str, ...]:
    """Take exact origins, or "*"."""
    return tuple(_origin(text) for text in value)


def parse_networks(value: list[str]) -> tuple[Network, ...]:
    """Take networks in CIDR form; an address alone is a network of one."""
    try:
        return tuple(ipaddress.ip_network(text) for text in value)
    except ValueError:
        raise ValueError('has an entry that is no network; write ["10.0.0.0/8"], with the host bits zero') from None


def parse_host(value: str) -> str:
    """Take a name or an address; "" = all."""
    if value != value.strip() or any(character in value for character in "/[] \t"):
        raise ValueError('is no host name or address; write "127.0.0.1", "::1", or "" for all')
    return value


def parse_script_url(value: str) -> str:
    """Take the URL of a script, or a path on this very host."""
    parts = urlsplit(value)
    is_path = value.startswith("/") and not value.startswith("//")
    if not value.isprintable() or any(character in value for character in " \"'<>\\;"):
        raise ValueError("has characters that no URL has")
    if not is_path and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError('is no URL of a script; write "https://HOST/sockjs.min.js", or a path: "/sockjs.min.js"')
    return value


_REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")


def parse_redis_url(value: str | list[str]) -> str:
    """Take a URL of a server, of its sentinels, of a Cluster; or several, of independent ones; "" = the embedded one.

    Several come out as one text, with commas between; `split_redis_urls` takes them apart.
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
    """Take URLs apart: a comma divides two where a scheme follows, not between the addresses of sentinels."""
    return [each.strip() for each in re.split(r",\s*(?=[a-z+]+://)", value)]


def parse_prefix(value: str) -> str:
    """Take what every Redis name of this deployment begins with."""
    if not _PREFIX.fullmatch(value):
        raise ValueError("takes 1 to 64 letters, digits and _ . : -")
    return value


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can connect there. A name other than localhost counts as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
