"""Secrets in settings, and settings in an environment that other programs share."""

import os
import re

import pytest

from snorky.gateway.config.settings import (
    ApiKey,
    Settings,
    load,
)
from snorky.gateway.errors import ConfigurationError
from tests.support.scenarios.settings_files import SECRET, load_toml, only_problem_of


def test_file_variable_reads_a_secret_without_its_last_newline(tmp_path):
    secret = tmp_path / "key"
    secret.write_text("swordfish of the back end, 4711\n")
    settings = load(None, {"SNORKY_PRIVATE__API_KEY_FILE": str(secret)})
    assert settings.private.api_key is not None
    assert settings.private.api_key.matches("swordfish of the back end, 4711")


def test_secret_given_twice_is_refused(tmp_path):
    problem = only_problem_of(tmp_path, SNORKY_REDIS_URL="redis://a", SNORKY_REDIS_URL_FILE=str(tmp_path / "url"))
    assert problem == "SNORKY_REDIS_URL and SNORKY_REDIS_URL_FILE are both set; unset one of them"


def test_secret_file_that_is_not_there_is_named(tmp_path):
    problem = only_problem_of(tmp_path, SNORKY_PRIVATE__API_KEY_FILE=str(tmp_path / "none"))
    assert problem == "SNORKY_PRIVATE__API_KEY_FILE: the file it names cannot be read: No such file or directory"


@pytest.mark.parametrize(
    "text",
    [
        '[private]\napi_key = " swordfish"',
        '[private]\napi_key = "sha256:swordfish"',
        'redis_url = "swordfish://swordfish"',
        '[auth]\nhmac_secret = "swordfish"',
    ],
)
def test_problem_never_quotes_the_value(tmp_path, text):
    assert "swordfish" not in only_problem_of(tmp_path, text)


def test_repr_shows_no_secret(tmp_path):
    settings = load_toml(
        tmp_path,
        """
        redis_url = "redis://:swordfish@redis"
        [private]
        api_key = "swordfish of the back end, 4711"
        [services.own]
        class = "own:Service"
        token = "swordfish"
        [auth]
        hmac_secret = "swordfish 0123 and whatever else there is"
        """,
    )
    assert "swordfish" not in repr(settings)
    assert ApiKey.parse("swordfish").sha256.hex() not in repr(settings)


def test_api_key_and_its_hash_are_the_same_key():
    key = ApiKey.parse("swordfish")
    assert ApiKey.parse(f"sha256:{key.sha256.hex().upper()}") == key
    assert key.matches("swordfish")
    assert not key.matches("swordfisH")
    assert not key.matches(f"sha256:{key.sha256.hex()}")
    assert not key.matches("\udcff")  # as a header that is no UTF-8 decodes


# -- secrets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weak", ["a", "a" * 32, "swordfish", "ab" * 40, "0123456789abcdef"[:12], "abcdefghijklmnopqrstuvwxyz"]
)
def test_a_secret_that_can_be_guessed_is_refused_with_how_to_make_one(tmp_path, weak):
    assert "openssl rand -hex 32" in only_problem_of(tmp_path, f'[private]\napi_key = "{weak}"')
    assert "openssl rand -hex 32" in only_problem_of(tmp_path, f'[private.api_keys]\nweb = "{weak}"')
    assert "openssl rand -hex 32" in only_problem_of(tmp_path, f'[auth]\nhmac_secret = "{weak}"')


@pytest.mark.parametrize("size", [16, 32])
def test_a_random_key_as_the_error_suggests_is_valid(tmp_path, size):
    for _ in range(100):
        load_toml(tmp_path, f'[private]\napi_key = "{os.urandom(size).hex()}"')


def test_several_keys_of_the_backend_are_known_by_name(tmp_path):
    jobs = tmp_path / "jobs"
    jobs.write_text(f"{SECRET} of jobs\n")
    environ = {"SNORKY_PRIVATE__API_KEYS__JOBS_FILE": str(jobs), "SNORKY_PRIVATE__API_KEY": f"{SECRET} of old"}
    private = load_toml(tmp_path, f'[private.api_keys]\nweb = "{SECRET} of web"', **environ).private
    names = [private.key_name(f"{SECRET} of {who}") for who in ("web", "jobs", "old", "others")]
    assert names == ["web", "jobs", "api_key", None]
    as_json = load(None, {"SNORKY_PRIVATE__API_KEYS": f'{{"web": "{SECRET}"}}'}).private
    assert as_json.key_name(SECRET) == "web" and as_json.has_key
    assert SECRET not in repr(private) + repr(as_json)


def test_a_previous_key_of_tokens_needs_the_present_one(tmp_path):
    assert "write the new one as hmac_secret" in only_problem_of(tmp_path, f'[auth]\nhmac_secret_previous = "{SECRET}"')


@pytest.mark.parametrize("ends", ["", "\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_a_byte_order_mark_of_a_file_are_no_part_of_a_secret(tmp_path, ends, mark):
    path = tmp_path / "secret"
    path.write_bytes(f"{mark}{SECRET}{ends}".encode())
    settings = load(None, {"SNORKY_AUTH__HMAC_SECRET_FILE": str(path), "SNORKY_PRIVATE__API_KEY_FILE": str(path)})
    assert settings.auth.hmac_secret == SECRET.encode()
    assert settings.private.key_name(SECRET) == "api_key"


def test_a_byte_order_mark_of_the_settings_file_is_passed_over(tmp_path):
    path = tmp_path / "snorky.toml"
    path.write_bytes(b"\xef\xbb\xbfprefix = 'shop'\r\n")
    assert load(path, {}).prefix == "shop"


@pytest.mark.parametrize("character", ["\ufeff", "\u200b", "\u00a0", "\t", "\x7f", "\u202e", "\n"])
@pytest.mark.parametrize("setting", ["api_key", "hmac_secret"])
def test_an_invisible_character_in_a_secret_is_reported_with_its_place(tmp_path, character, setting):
    section = "private" if setting == "api_key" else "auth"
    escaped = f"\\u{ord(character):04x}"
    for text in (f"{SECRET}{escaped}", f"{escaped}{SECRET}", f"{SECRET}{escaped}{SECRET}"):
        problem = only_problem_of(tmp_path, f'[{section}]\n{setting} = "{text}"')
        assert f"U+{ord(character):04X}" in problem and SECRET not in problem


# -- the environment, which other programs share ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("SNORKY_PUBLIC_PORT", "9000", "did you mean SNORKY_PUBLIC__PORT?"),
        ("SNORKY_PUBLIC___PORT", "9000", "did you mean"),
        ("SNORKY_PRIVATE_API_KEY_FILE", "/nowhere", "cannot be read"),
        ("SNORKY_AUTH_HMAC_SECRET", "x", "did you mean SNORKY_AUTH__HMAC_SECRET?"),
        ("SNORKY_REDIS__URL", "redis://a", "did you mean"),
        ("SNORKY_REDISURL", "redis://a", "did you mean SNORKY_REDIS_URL?"),
        ("SNORKY_PORT", "9000", "did you mean SNORKY_PUBLIC__PORT or SNORKY_PRIVATE__PORT?"),
        ("SNORKY_LIMITS_CONECTIONS", "9", "did you mean SNORKY_LIMITS__CONNECTIONS?"),
        ("SNORKY_SERVICES_CHAT_CLASS", "a:B", "did you mean SNORKY_SERVICES__NAME__CLASS?"),
    ],
)
def test_a_variable_near_a_setting_is_an_error_with_the_right_spelling(variable, value, expected):
    with pytest.raises(ConfigurationError, match=re.escape(expected)):
        load(None, {variable: value})


def test_variables_of_the_client_library_cause_no_error_and_no_warning():
    warnings: list[str] = []
    library = {
        "SNORKY_BACKEND_URL": "http://127.0.0.1:8003/backend",
        "SNORKY_BACKEND_KEY": SECRET,
        "SNORKY_TIMEOUT_S": "1",
        "SNORKY_TOKEN_HMAC_SECRET": SECRET,
        "SNORKY_TOKEN_PRIVATE_KEY": SECRET,
        "SNORKY_TOKEN_KEY_ID": "2026-11",
        "SNORKY_TOKEN_AUDIENCE": "app",
        "SNORKY_TOKEN_ISSUER": "https://shop.example",
        "SNORKY_TOKEN_IDENTITY_CLAIM": "user_id",
    }
    assert load(None, library, warnings) == Settings()
    assert warnings == []


def test_a_variable_of_another_program_is_a_warning():
    warnings: list[str] = []
    load(None, {"SNORKY_DASHBOARD_COLOUR": "swordfish", "SNORKY_API_KEY": "swordfish"}, warnings)
    first, second = sorted(warnings)
    assert "SNORKY_API_KEY" in first and "SNORKY_PRIVATE__API_KEY" in first
    assert second.startswith("SNORKY_DASHBOARD_COLOUR: not read by a node")
    assert "swordfish" not in first + second
