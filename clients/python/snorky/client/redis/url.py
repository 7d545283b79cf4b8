"""RedisUrl: the grammar of `redis_url`, the same for nodes and for programs that publish through Redis. Pure.

    redis://USER:PASSWORD@HOST:PORT/DB                      plain TCP
    rediss://...                                            TLS, always verified
    unix:///PATH?db=N                                       Unix socket
    redis+sentinel://USER:PASSWORD@HOST:PORT,.../NAME/DB    the primary that these sentinels know as NAME
    rediss+sentinel://...                                   the same, all by TLS
    redis+cluster://USER:PASSWORD@HOST:PORT,...             the Cluster that these servers are some of; rediss+cluster

Rules:
- gateway/redis/url.py and clients/python/snorky/client/redis/url.py are the same text: neither package needs the other.
- User, password, name and path are percent-decoded. An option that is not known is refused: one that is ignored
  silently is a setting that somebody relies on.
- No error repeats a part of the URL: what looks like an option or a host may be a password that was not encoded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

__all__ = ["RedisUrl", "parse_redis_url"]

_TLS_OPTIONS = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_check_hostname")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "redis": ("db",),
    "unix": ("db",),
    "rediss": ("db", *_TLS_OPTIONS),
    "redis+sentinel": ("db", *_SENTINEL_OPTIONS),
    "rediss+sentinel": ("db", *_TLS_OPTIONS, *_SENTINEL_OPTIONS),
    "redis+cluster": (),
    "rediss+cluster": _TLS_OPTIONS,
}
# Options of redis-py that change what connections do; the names are no secrets, so that errors may tell them.
_DRIVER_OPTIONS = frozenset(
    "client_name decode_responses encoding encoding_errors health_check_interval lib_name lib_version max_connections "
    "password port protocol retry_on_error retry_on_timeout socket_connect_timeout socket_keepalive "
    "socket_read_size socket_timeout timeout username host path ssl_check_ocsp ssl_ciphers ssl_min_version".split()
)
_PORT = 6379
_SENTINEL_PORT = 26379
_EXAMPLE = 'write "redis://127.0.0.1:6379/0", "rediss://HOST:PORT/0" for TLS, or "unix:///path/to/socket"'
_CLUSTER_EXAMPLE = 'write "redis+cluster://HOST:PORT,HOST:PORT,HOST:PORT"'
_SENTINEL_EXAMPLE = 'write "redis+sentinel://HOST:PORT,HOST:PORT,HOST:PORT/NAME/0", NAME as in "sentinel monitor NAME"'
_EXAMPLES = {"sentinel": _SENTINEL_EXAMPLE, "cluster": _CLUSTER_EXAMPLE}
_ENCODE = "in a user, password or name write % as %25, / as %2F, ? as %3F, # as %23, @ as %40 (percent-encoding)"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """One URL, taken apart.

    addresses: of the server, the sentinels or some servers of the Cluster; they mean nothing if there is a path: a
    Unix socket's. name: of the primary that sentinels know. tls: options of redis-py, None = no TLS.
    """

    scheme: str
    addresses: tuple[tuple[str, int], ...]
    path: str | None = None
    name: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: Mapping[str, str | bool] | None = field(default=None, repr=False)

    @property
    def is_sentinel(self) -> bool:
        """True if sentinels are to be asked for the server."""
        return self.scheme.endswith("+sentinel")

    @property
    def is_cluster(self) -> bool:
        """True if it is a Redis Cluster."""
        return self.scheme.endswith("+cluster")

    @property
    def places(self) -> str:
        """The addresses as text, with commas between."""
        return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.addresses)

    @property
    def identity(self) -> str:
        """What tells it from other Redis: without secrets, options and sentinels."""
        if self.path is not None:
            return f"unix://{self.path}?db={self.db}"
        if self.is_cluster:
            return f"{self.scheme}://{self.places}"
        return f"{self.scheme}://{self.name if self.is_sentinel else self.places}/{self.db}"


def parse_redis_url(url: str) -> RedisUrl:
    """Parse one URL. Raises ValueError; its text starts with `redis_url` and contains the correction."""
    scheme = url.partition("://")[0].lower()
    if scheme not in _OPTIONS or "://" not in url:
        raise ValueError(f"redis_url is no Redis URL: {_EXAMPLE}")
    example = _EXAMPLES.get(scheme.partition("+")[2], _EXAMPLE)
    if not url.isprintable() or " " in url or "\ufeff" in url:
        raise ValueError(f"redis_url has a space or an invisible character: {_ENCODE}, a space as %20")
    if "#" in url:
        raise ValueError(f"redis_url has a #, which begins what no server sees: {_ENCODE}")
    try:
        parts = urlsplit(url)
        login, at, places = parts.netloc.rpartition("@")
        if "+" not in scheme and "," in places:
            raise ValueError
        servers = [urlsplit(f"//{place}") for place in places.split(",")]
        default = _SENTINEL_PORT if scheme.endswith("+sentinel") else _PORT
        addresses = tuple((unquote(each.hostname or "127.0.0.1"), each.port or default) for each in servers)
    except ValueError:  # its text would quote the URL, and the password with it
        if "+" not in scheme and "," in url:
            text = f"redis_url is a list of servers, and no scheme that takes one: {example}; {_ENCODE}"
            raise ValueError(text) from None
        raise ValueError(f"redis_url has no valid host and port: {example}; {_ENCODE}") from None
    is_placed = all(each.hostname for each in servers)
    if scheme != "unix" and (
        "@" in parts.path or (at and not is_placed) or (":" in places and not is_placed and "@" in parts.query)
    ):
        raise ValueError(f"redis_url has a user or password, but no host: {example}; {_ENCODE}")
    options = _options(parts, scheme)
    steps = parts.path.strip("/").split("/") if scheme != "unix" else [""]
    name = unquote(steps.pop(0)) if scheme.endswith("+sentinel") else ""
    db = options.pop("db", "") or "/".join(steps) or "0"
    if not (db.isascii() and db.isdigit() and len(db) <= 9):
        raise ValueError("redis_url: the database is no number; write it as /0 or ?db=0")
    if scheme.endswith("+sentinel") and not (name and is_placed):
        raise ValueError(f"redis_url names no sentinels, or nothing that they know: {example}")
    if scheme.endswith("+cluster") and (db != "0" or not is_placed):
        raise ValueError(f"redis_url names no servers, or a database, which a Cluster has not: {example}")
    path = unquote(parts.path) if scheme == "unix" else None
    if path == "":
        raise ValueError('redis_url names no socket; write "unix:///path/to/socket"')
    user, _, password = login.partition(":")
    return RedisUrl(
        scheme,
        addresses,
        path=path,
        name=name,
        db=int(db),
        username=unquote(user) or None,
        password=unquote(password) or None,
        sentinel_username=options.pop("sentinel_username", None),
        sentinel_password=options.pop("sentinel_password", None),
        tls=_tls(options) if scheme.startswith("rediss") else None,
    )


def _options(parts: SplitResult, scheme: str) -> dict[str, str]:
    options: dict[str, str] = {}
    known = _OPTIONS[scheme]
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "ssl_cert_reqs":
            if value != "required" or not scheme.startswith("rediss"):
                raise ValueError("redis_url: certificates are always verified; name the CA by ssl_ca_certs=PATH")
            continue  # what is done anyway
        if name not in known:
            raise ValueError(_unknown(name, known, scheme))
        if not value:
            raise ValueError(f"redis_url: option {name} is empty")
        if name in options:
            raise ValueError(f"redis_url: option {name} is there twice")
        options[name] = value
    return options


def _unknown(name: str, known: tuple[str, ...], scheme: str) -> str:
    """Say what is wrong with an option; its name only if it is one of redis-py's."""
    allowed = ", ".join(sorted(known)) or "none"
    if name in _DRIVER_OPTIONS:
        return f"redis_url: leave out {name}: connections are made with a setting that works; known are: {allowed}"
    if any(name in names for names in _OPTIONS.values()):
        return f"redis_url: option {name} is unknown for {scheme}://; known are: {allowed}"
    near = get_close_matches(name, known, 1, 0.8)
    hint = f"did you mean {near[0]}?" if near else f"if it is part of a password, {_ENCODE}"
    return f"redis_url: an option is unknown for {scheme}://; known are: {allowed}; {hint}"


def _tls(options: Mapping[str, str]) -> dict[str, str | bool]:
    tls: dict[str, str | bool] = dict(options)
    if (value := options.get("ssl_check_hostname")) is not None:
        if value.lower() not in ("true", "1", "yes", "false", "0", "no"):
            raise ValueError("redis_url: ssl_check_hostname is true or false")
        tls["ssl_check_hostname"] = value.lower() in ("true", "1", "yes")
    return tls
