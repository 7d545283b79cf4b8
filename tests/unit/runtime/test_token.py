"""`snorky token`: the token on standard output, and a sentence on standard error if there is none."""

import os
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner, Result

from snorky.gateway.auth.tokens import FixedKey, Key, Verifier
from snorky.gateway.cli import app
from snorky.gateway.config.auth import Auth
from tests.support.scenarios.tokens import SECRET, Issuer

HMAC = {"SNORKY_AUTH__HMAC_SECRET": SECRET}
EC = Issuer("ES256")


def run(*arguments: str, **env: str) -> Result:
    clean = {name: None for name in os.environ if name.startswith("SNORKY_")}
    runner = CliRunner(env={**clean, "TERMINAL_WIDTH": "80", "NO_COLOR": "1", **env})
    result = runner.invoke(app, ["token", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def minted(*arguments: str, **env: str) -> str:
    """Run a command that must succeed; return its token, the only output."""
    result = run(*arguments, **{**HMAC, **env})
    assert (result.exit_code, result.stderr) == (0, "")
    token, end, rest = result.stdout.partition("\n")
    assert (end, rest) == ("\n", "")
    return token


def claims(*arguments: str, **env: str) -> dict[str, Any]:
    read: dict[str, Any] = jwt.decode(minted(*arguments, **env), options={"verify_signature": False})
    return read


def refusal(code: int, *arguments: str, **env: str) -> str:
    result = run(*arguments, **env)
    assert (result.exit_code, result.stdout) == (code, "")
    assert "Traceback" not in result.stderr and SECRET not in result.stderr
    return " ".join(result.stderr.split())


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "key.pem"
    path.write_bytes(EC.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return str(path)


async def test_token_of_the_settings_is_accepted_by_nodes_with_these_settings() -> None:
    env = {"SNORKY_AUTH__AUDIENCE": "app", "SNORKY_AUTH__ISSUER": "shop"}
    verifier = Verifier(FixedKey(Key("HS256", SECRET.encode())), Auth(audience="app", issuer="shop"))
    before_s = int(time.time())
    found = await verifier.verify(minted("alice", "--expires-in", "60", **env))
    assert found.identity == "alice" and found.token_id
    assert before_s + 60 <= found.expires_at_s <= time.time() + 60


def test_connection_token_has_claims_and_permissions() -> None:
    read = claims(
        "alice", "--channels", "orders:7=subscribe,history", "--channels", "a=*=publish",
        "--claim", 'shops=["7", 8]', "--claim", 'note="a=b"',
    )  # fmt: skip
    assert read["channels"] == {"orders:7": ["subscribe", "history"], "a=*": ["publish"]}
    assert (read["shops"], read["note"], read["exp"] - read["iat"]) == (["7", 8], "a=b", 3600)
    read = claims("alice", "--service", "chat", "--channels", "room:*=join")
    assert read["services"] == {"chat": {"room:*": ["join"]}} and "channels" not in read


def test_integers_are_written_as_nodes_write_them() -> None:
    assert claims("~7")["sub"] == 7
    assert claims("--", "~-7")["sub"] == -7
    assert claims("7")["sub"] == "7"
    assert claims("~x")["sub"] == "~x"
    assert claims("~7", SNORKY_AUTH__IDENTITY_CLAIM="user_id")["user_id"] == 7


def test_subscription_token_is_for_one_channel() -> None:
    read = claims("alice", "--channel", "orders:7")
    assert read.keys() == {"sub", "channel", "iat", "exp", "jti"} and read["channel"] == "orders:7"
    read = claims(
        "--anonymous", "--channel", '["room", 5]', "--json-channel", "--op", "subscribe", "--op", "history",
        "--info", '{"name": "A"}', "--service", "other",
    )  # fmt: skip
    assert "sub" not in read and read["channel"] == ["room", 5] and read["ops"] == ["subscribe", "history"]
    assert (read["info"], read["service"]) == ({"name": "A"}, "other")


async def test_token_of_a_private_key_is_accepted_by_nodes_with_its_public_key(key_file: str) -> None:
    public = {"SNORKY_AUTH__PUBLIC_KEY": EC.pem.decode()}
    for env in ({}, public, {"SNORKY_AUTH__JWKS_URL": "https://keys.example.org/"}):
        result = run("alice", "--private-key", key_file, "--key-id", "k1", **env)
        assert (result.exit_code, result.stderr) == (0, "")
        token = result.stdout.strip()
        assert (await Verifier(FixedKey(Key.public(EC.public))).verify(token)).identity == "alice"
        assert jwt.get_unverified_header(token)["kid"] == "k1"
    previous = {"SNORKY_AUTH__PUBLIC_KEY": Issuer().pem.decode(), "SNORKY_AUTH__PUBLIC_KEY_PREVIOUS": EC.pem.decode()}
    assert run("alice", "--private-key", key_file, **previous).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "env", "text"),
    [
        (["alice"], {}, "no key to sign with"),
        (["alice"], {"SNORKY_AUTH__PUBLIC_KEY": EC.pem.decode()}, "only public keys, which cannot sign"),
        (["alice"], {"SNORKY_AUTH__JWKS_URL": "https://keys.example.org/"}, "only public keys, which cannot sign"),
        (["alice"], {"SNORKY_AUTH__HMAC_SECRET": "short"}, "SNORKY_AUTH__HMAC_SECRET: has less than 32 bytes"),
        (["alice", "--private-key", "KEY"], HMAC, "leave --private-key out"),
        (["alice", "--private-key", "KEY"], {"SNORKY_AUTH__PUBLIC_KEY": Issuer().pem.decode()}, "does not belong to"),
        (["alice", "--private-key", "/nowhere/x"], {}, "/nowhere/x cannot be read: No such file"),
        (["alice", "--private-key", __file__], {}, "no private key in PEM form"),
        ([""], HMAC, "an identity is a text of 1 to 255 bytes"),
        (["~99999999999999999999"], HMAC, "reserved for the integer"),
        (
            ["alice", "--expires-in", "101"],
            {**HMAC, "SNORKY_AUTH__TOKEN_MAX_LIFETIME_S": "100"},
            "valid for 1 to 100 s",
        ),
        (["alice", "--claim", "exp=1"], HMAC, "the claim exp"),
        (["alice", "--claim", f'x="{"y" * 6200}"'], HMAC, "nodes accept at most 8192"),
        (["alice", "--channels", "x=read"], HMAC, "unknown operation 'read'"),
        (["alice", "--channels", "x="], HMAC, "unknown operation ''"),
        (["alice", "--channels", "{identity}=history"], HMAC, "write the value"),
        (["alice", "--channel", "x" * 254], HMAC, "no node accepts this channel"),
        (["alice", "--channel", "x", "--op", "join"], HMAC, "unknown operation 'join'"),
        (["alice", "--channel", "x", "--service", "Chat"], HMAC, "a service's name has"),
    ],
)
def test_problem_is_a_sentence_and_no_token(
    arguments: list[str], env: dict[str, str], text: str, key_file: str
) -> None:
    assert text in refusal(1, *(key_file if each == "KEY" else each for each in arguments), **env)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "either an IDENTITY or --anonymous"),
        (["alice", "--anonymous", "--channel", "x"], "either an IDENTITY or --anonymous"),
        (["--anonymous"], "--anonymous needs --channel"),
        (["alice", "--op", "history"], "belong to --channel"),
        (["alice", "--info", "1"], "belong to --channel"),
        (["alice", "--service", "chat"], "--service belongs to"),
        (["alice", "--channel", "x", "--claim", "a=1"], "leave --channel out"),
        (["alice", "--channel", "x", "--channels", "a=history"], "leave --channel out"),
        (["alice", "--channel", "x", "--info", "{"], "--info: the value is no JSON"),
        (["alice", "--channel", "x", "--json-channel"], "the channel is no JSON"),
        (["alice", "--claim", "role=admin"], "--claim role: the value is no JSON"),
        (["alice", "--claim", "role"], "write a name and JSON"),
        (["alice", "--claim", "a=1", "--claim", "a=2"], "a is written twice"),
        (["alice", "--channels", "x"], "write a pattern and operations"),
        (["alice", "--channels", "x=history", "--channels", "x=publish"], "x is written twice"),
    ],
)
def test_wrong_usage_is_refused_with_what_to_write(arguments: list[str], text: str) -> None:
    assert text in refusal(2, *arguments, **HMAC)
