"""None"""

import ipaddress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from snorky.gateway.config.auth import algorithm_of
from snorky.gateway.config.parsers import split_redis_urls
from snorky.gateway.config.settings import (
    ApiKey,
    Auth,
    Limits,
    Private,
    Public,
    ServiceTable,
    Settings,
    is_loopback,
    load,
)
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.sdk.loading import load_registries
from tests.support.scenarios.settings_files import SECRET, load_toml, only_problem_of, problems_of


def test_without_settings_the_safe_defaults_apply():
    settings = load(None, {})
    assert settings == Settings()
    assert (settings.redis_url, settings.prefix) == ("", "snorky")
    assert (settings.public.host, settings.public.port, settings.public.allowed_origins) == ("127.0.0.1", 8002, ())
    assert (settings.private.host, settings.private.port, settings.private.api_key) == ("127.0.0.1", 8003, None)
    assert settings.limits.message_max_bytes == 65_536
    assert settings.limits.outbox_max_bytes == 1_048_576
    assert settings.public.compression is False
    assert settings.problems(insecure=False) == []


def test_every_setting_of_the_file_is_taken(tmp_path):
    settings = load_toml(
        tmp_path,
        """
        redis_url = "rediss://node:secret@redis.example:6380/0"
        prefix = "shop"
        [public]
        host = ""
        port = 80
        allowed_origins = ["https://App.example.org:443", "http://localhost:3000"]
        trusted_proxies = ["10.0.0.0/8", "::1"]
        compression = true
        ping_interval_s = 5
        drain_grace_s = 0
        [private]
        host = "::1"
        port = 81
        api_key = "swordfish of the back end, 4711"
        [limits]
        message_max_bytes = 1000
        outbox_max_bytes = 2000
        connections = 0
        messages_per_s = 2.5
        """,
    )
    assert settings.redis_url == "rediss://node:secret@redis.example:6380/0"
    assert settings.prefix == "shop"
    assert settings.public == Public(
        host="",
        port=80,
        allowed_origins=("https://app.example.org", "http://localhost:3000"),
        trusted_proxies=(ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::1")),
        compression=True,
        ping_interval_s=5.0,
        drain_grace_s=0.0,
    )
    assert settings.private == Private(host="::1", port=81, api_key=ApiKey.parse("swordfish of the back end, 4711"))
    assert settings.limits == Limits(message_max_bytes=1000, outbox_max_bytes=2000, connections=0, messages_per_s=2.5)


def test_environment_wins_over_the_file(tmp_path):
    settings = load_toml(
        tmp_path,
        'redis_url = "redis://file"\n[public]\nport = 1\nhost = "::1"',
        SNORKY_REDIS_URL="redis://environment",
        SNORKY_PUBLIC__PORT="2",
        SNORKY_PUBLIC__ALLOWED_ORIGINS='["https://a.example"]',
        SNORKY_PUBLIC__COMPRESSION="true",
    )
    assert settings.redis_url == "redis://environment"
    assert settings.public == Public(host="::1", port=2, allowed_origins=("https://a.example",), compression=True)


SEVERAL = "redis://a:1/0,redis+sentinel://b:1,c:2/main,rediss://d"


@pytest.mark.parametrize(
    "environment",
    [
        SEVERAL,
        SEVERAL.replace(",redis", ", redis"),
        '["redis://a:1/0", "redis+sentinel://b:1,c:2/main", "rediss://d"]',
    ],
)
def test_several_redis_are_a_list_or_one_text(tmp_path, environment):
    text = 'redis_url = ["redis://a:1/0", "redis+sentinel://b:1,c:2/main", "rediss://d"]'
    assert load_toml(tmp_path, text).redis_url == SEVERAL
    assert load_toml(tmp_path, "", SNORKY_REDIS_URL=environment).redis_url == SEVERAL
    assert split_redis_urls(SEVERAL) == ["redis://a:1/0", "redis+sentinel://b:1,c:2/main", "rediss://d"]


def test_config_variable_names_the_file(tmp_path):
    path = tmp_path / "elsewhere.toml"
    path.write_text('prefix = "there"')
    assert load(None, {"SNORKY_CONFIG": str(path)}).prefix == "there"


def test_service_links_of_kubernetes_are_no_settings():
    links = {
        "SNORKY_PORT": "tcp://10.0.0.1:8002",
        "SNORKY_PORT_8002_TCP": "tcp://10.0.0.1:8002",
        "SNORKY_PORT_8002_TCP_ADDR": "10.0.0.1",
        "SNORKY_SERVICE_HOST": "10.0.0.1",
        "SNORKY_SERVICE_PORT": "8002",
        "SNORKY_PUBLIC_SERVICE_PORT_HTTP": "8002",
    }
    assert load(None, links) == Settings()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('redis_ulr = "redis://a"', "redis_ulr: unknown setting; did you mean redis_url?"),
        ("port = 1", "port: unknown setting; did you mean [public] port or [private] port?"),
        ("[limits]\nmesage_max_bytes = 1", "did you mean [limits] message_max_bytes?"),
        ("[limits]\nzzz = 1", "[limits] zzz: unknown setting; known are message_max_bytes, outbox_max_bytes"),
        ("[zzz]\nyyy = 1", "[zzz] yyy: unknown setting; known are redis_url, prefix"),
        ("public = 1", "public: must be a table: [public]"),
        ('[public]\nport = "80"', "[public] port: expected `int`, got `str`; write port = 8002"),
        ("[public]\nport = 70000", "[public] port: expected `int` <= 65535; write port = 8002"),
        ("[public]\ncompression = 1", "expected `bool`, got `int`; write compression = false"),
        ("[public]\nping_interval_s = nan", "[public] ping_interval_s: "),
        ("[limits]\nmessages_per_s = inf", "[limits] messages_per_s: must be finite"),
        ('[public]\nallowed_origins = "*"', 'expected `array`, got `str`; write allowed_origins = ["..."]'),
        ('[public]\nallowed_origins = ["https://a.example/"]', "no path"),
        ('[public]\nallowed_origins = ["a.example"]', "no origin"),
        ('[public]\nallowed_origins = ["http://a:b"]', "no origin"),
        ('[public]\ntrusted_proxies = ["10.0.0.1/8"]', "host bits"),
        ('[public]\nhost = "http://a"', '"" for all'),
        ('prefix = "a{b}"', "prefix: takes 1 to 64 letters"),
        ('redis_url = "http://a"', 'write "redis://127.0.0.1:6379/0"'),
        ('redis_url = ["redis+cluster://a", "redis://b"]', "name its servers in one URL"),
        ('redis_url = ["redis://a", "http://b"]', 'write "redis://127.0.0.1:6379/0"'),
        ('redis_url = ["redis://a", ""]', 'write "redis://127.0.0.1:6379/0"'),
        ("redis_url = []", "is an empty list"),
        ("redis_url = 5", 'write redis_url = "..."'),
        (f'[auth]\nhmac_secret = "{"x" * 31}"', "[auth] hmac_secret: has less than 32 bytes; make one with: openssl"),
        (f'[auth]\nhmac_secret = "-----BEGIN PUBLIC KEY-----{"x" * 31}"', "write it as public_key"),
        ('[auth]\npublic_key = "x"', "[auth] public_key: is no public key in PEM form"),
        ('[auth]\npublic_key = "-----BEGIN PRIVATE KEY-----"', "is a private key"),
        ('[auth]\njwks_url = "http://issuer.example/keys"', "[auth] jwks_url: must begin with https://"),
        ('[auth]\njwks_url = ""', "[auth] jwks_url: must begin with https://"),
        ('[auth]\njwks_url = "https://[a"', "[auth] jwks_url: must begin with https://"),
        ('[auth]\nidentify_hook = "sessions.py"', '[auth] identify_hook: must be "module:function"'),
        ('[auth]\naudience = ""', "[auth] audience: is empty"),
        ("[auth]\nleeway_s = -1", "[auth] leeway_s: "),
        ("[auth]\ntoken_max_lifetime_s = 0", "[auth] token_max_lifetime_s: "),
        ('[auth]\nalgorithm = "none"', "[auth] algorithm: unknown setting"),
        ('auth = "x"', "auth: must be a table: [auth]"),
        ("[auth]\nrequired = true", "[auth] required = true, but no way to authenticate is set"),
        ('[auth]\naudience = "x"', "mean nothing without a key"),
        (
            f'[auth]\nhmac_secret = "{SECRET}"\njwks_url = "https://issuer.example/keys"',
            "[auth] hmac_secret and jwks_url are both set",
        ),
        ('[private]\napi_key = ""', "openssl rand -hex 32"),
        ('[private]\napi_key = "sha256:12"', "64 hex digits"),
        ("[limits]\noutbox_max_bytes = 1000", "outbox_max_bytes is below message_max_bytes"),
        ("[public]\nport = 8003", "are both 8003"),
        ("[services.pubsub]\nhooks = 1", 'needs [services.pubsub] class: add class = "snorky.services.pubsub:'),
        ('[services.pubsub]\nclass = "services.pubsub"', 'must be "module:Class"'),
        ('[services]\npubsub = "snorky.services.pubsub:PubSub"', '[services.pubsub] class = "module:Class"'),
        ('[services."a b"]\nclass = "a:B"', "only a-z 0-9 _ -"),
        ("x = ", "is not TOML"),
    ],
)
def test_errors_name_file_key_and_remedy(tmp_path, text, expected):
    problem = only_problem_of(tmp_path, text)
    assert expected in problem
    assert problem.startswith((f"{tmp_path}/snorky.toml: ", "[limits] outbox", "[public] port and", "[auth] "))


def test_every_problem_is_reported_at_once(tmp_path):
    text = 'redis_ulr = "a"\n[public]\nport = "x"\nhsot = "a"'
    assert len(problems_of(tmp_path, text, SNORKY_PRIVATE__PORT="high", SNORKY_LIMITS__CONNECTOINS="1")) == 5


def test_environment_value_of_the_wrong_type_shows_how_to_write_it(tmp_path):
    problem = only_problem_of(tmp_path, SNORKY_PUBLIC__ALLOWED_ORIGINS="https://a.example")
    assert problem == "SNORKY_PUBLIC__ALLOWED_ORIGINS: is not JSON; write SNORKY_PUBLIC__ALLOWED_ORIGINS='[\"...\"]'"


def test_missing_file_is_one_problem():
    with pytest.raises(ConfigurationError, match=r"^/nowhere/snorky\.toml: no such file"):
        load(Path("/nowhere/snorky.toml"), {})


def test_file_that_is_no_text_is_one_problem(tmp_path):
    path = tmp_path / "snorky.toml"
    path.write_bytes(b"prefix = '\xff'")
    with pytest.raises(ConfigurationError, match="is not UTF-8 at byte 10"):
        load(path, {})


def test_service_tables_pass_their_other_keys_to_the_constructor(tmp_path):
    settings = load_toml(
        tmp_path,
        """
        [services.pubsub]
        class = "snorky.services.pubsub:PubSubService"
        greeting = "hello"
        [[services.pubsub.channels]]
        match = "chat:*"
        [backend.own]
        class = "own.module:Backend"
        """,
        SNORKY_BACKEND__OWN__RETRIES="3",
        SNORKY_BACKEND__OWN__GREETING="no json",
        SNORKY_BACKEND__MORE__CLASS="own:More",
    )
    assert settings.services == {
        "pubsub": ServiceTable(
            "snorky.services.pubsub:PubSubService", {"greeting": "hello", "channels": [{"match": "chat:*"}]}
        )
    }
    assert settings.backend == {
        "own": ServiceTable("own.module:Backend", {"retries": 3, "greeting": "no json"}),
        "more": ServiceTable("own:More"),
    }


def test_standard_services_are_there_unless_others_are_written(tmp_path):
    standard = load(None, {})
    assert standard.services["pubsub"] == ServiceTable("snorky.services.pubsub:PubSubService")
    assert standard.services["auth"] == ServiceTable("snorky.services.auth:AuthService")
    assert standard.backend["pubsub_backend"] == ServiceTable(
        "snorky.services.pubsub:PubSubBackend", {"service": "pubsub"}
    )
    assert standard.backend["auth_backend"] == ServiceTable("snorky.services.auth:AuthBackend", {"service": "auth"})
    own = load_toml(tmp_path, '[services.own]\nclass = "own:Service"')
    assert list(own.services) == ["own"]
    control = ServiceTable("snorky.services.control:ControlBackend")
    assert own.backend == {"control": control}, "the backend of a missing service would fail on every call"


def test_host_beyond_loopback_needs_insecure():
    for host in ("0.0.0.0", "", "::", "192.168.1.5", "gateway.example"):
        settings = Settings(public=Public(host=host))
        assert len(settings.problems(insecure=False)) == 1
        assert "--insecure" in settings.problems(insecure=False)[0]
        assert settings.problems(insecure=True) == []


def test_host_beyond_loopback_is_allowed_with_required_authentication():
    public = Public(host="0.0.0.0")
    assert Settings(public=public, auth=Auth(hmac_secret=SECRET.encode(), required=True)).problems(insecure=False) == []
    (problem,) = Settings(public=public, auth=Auth(hmac_secret=SECRET.encode())).problems(insecure=False)
    assert "[auth] required = true" in problem, "API keys alone refuse no client"


@pytest.mark.parametrize("curve", [ec.SECP256R1(), None])
def test_public_key_is_read_from_a_file_and_determines_the_algorithm(tmp_path, curve):
    private = rsa.generate_private_key(65537, 2048) if curve is None else ec.generate_private_key(curve)
    path = tmp_path / "key.pem"
    path.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    auth = load(None, {"SNORKY_AUTH__PUBLIC_KEY_FILE": str(path), "SNORKY_AUTH__AUDIENCE": "app"}).auth
    assert algorithm_of(auth.public_key) == ("RS256" if curve is None else "ES256")
    assert (auth.audience, auth.has_keys) == ("app", True)


@pytest.mark.parametrize("private", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 1024)])
def test_public_key_of_another_kind_or_a_weak_one_is_refused(tmp_path, private):
    path = tmp_path / "key.pem"
    path.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    problem = only_problem_of(tmp_path, SNORKY_AUTH__PUBLIC_KEY_FILE=str(path))
    assert problem.endswith("take RSA of 2048 bits or more, or P-256")


def test_every_setting_of_auth_is_taken(tmp_path):
    settings = load_toml(
        tmp_path,
        """
        [auth]
        audience = "app"
        issuer = "https://issuer.example"
        identity_claim = "user_id"
        leeway_s = 0
        token_max_lifetime_s = 3600
        identify_hook = "myapp.sessions:user_of"
        required = true
        timeout_s = 2
        """,
        SNORKY_AUTH__HMAC_SECRET=SECRET,
    )
    assert settings.auth == Auth(
        hmac_secret=SECRET.encode(),
        audience="app",
        issuer="https://issuer.example",
        identity_claim="user_id",
        leeway_s=0.0,
        token_max_lifetime_s=3600.0,
        identify_hook="myapp.sessions:user_of",
        required=True,
        timeout_s=2.0,
    )


def test_any_origin_needs_insecure_even_on_loopback():
    settings = Settings(public=Public(allowed_origins=("*",)))
    assert "https://app.example.org" in settings.problems(insecure=False)[0]
    assert settings.problems(insecure=True) == []


def test_private_port_beyond_loopback_needs_a_key_even_with_insecure():
    settings = Settings(private=Private(host="0.0.0.0"))
    for insecure in (False, True):
        (problem,) = settings.problems(insecure=insecure)
        assert "api_key" in problem
    with_key = Settings(private=Private(host="0.0.0.0", api_key=ApiKey.parse("swordfish")))
    assert with_key.problems(insecure=False) == []


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("", False),
        ("0.0.0.0", False),
        ("::", False),
        ("localhost.example", False),
    ],
)
def test_loopback_is_distinguished_from_other_hosts(host, expected):
    assert is_loopback(host) is expected


RULED = """
[services.pubsub]
class = "snorky.services.pubsub:PubSubService"
[[services.pubsub.channels]]
match = "chat:*"
history = 1000
presence = true
[[services.pubsub.channels]]
match = "news"
allow_publish = "nobody"
"""


def test_rules_of_channels_reach_their_service(tmp_path):
    public, _ = load_registries(load_toml(tmp_path, RULED))
    first, second = public["pubsub"].rules
    assert (first.match, first.history, first.presence, first.allow_publish) == ("chat:*", 1000, True, None)
    assert (second.match, second.history, second.allow_publish) == ("news", 0, "nobody")


def test_rules_of_channels_from_the_environment_win(tmp_path):
    settings = load_toml(tmp_path, RULED, SNORKY_SERVICES__PUBSUB__CHANNELS='[{"match": "other", "history": 5}]')
    public, _ = load_registries(settings)
    assert [(rule.match, rule.history) for rule in public["pubsub"].rules] == [("other", 5)]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("history", "histroy", "[services.pubsub] channels, rule 1: unknown key 'histroy'; did you mean history?"),
        (
            "= 1000",
            '= "1000"',
            "[services.pubsub] channels, rule 1: history: expected `int`, got `str`; write history = ",
        ),
        ('match = "news"', "presence = true", '[services.pubsub] channels, rule 2: needs match = "chat:*"'),
        ("[[services.pubsub.channels]]", "[services.pubsub.channels]", "Cannot"),
    ],
)
def test_errors_in_rules_name_service_rule_and_key(tmp_path, before, after, expected):
    with pytest.raises(ConfigurationError) as caught:
        load_registries(load_toml(tmp_path, RULED.replace(before, after)))
    assert expected.lower() in str(caught.value).lower()
