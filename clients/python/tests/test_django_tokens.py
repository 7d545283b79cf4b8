"""Django's helpers: the identity of users, and the settings."""

import base64
import datetime
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from django.core.exceptions import ImproperlyConfigured
from django.test import RequestFactory, override_settings
from django.utils.functional import SimpleLazyObject
from django_project import make_tables

from snorky.client.django import connection_token, subscription_token

README = (Path(__file__).parents[1] / "README.md").read_text()
SECRET = "a secret of more than thirty-two bytes"
PEM = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    with override_settings(SNORKY_TOKEN_HMAC_SECRET=SECRET):
        yield


def part(token: str, number: int = 1) -> Any:
    text = token.split(".")[number]
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def user(pk: Any, **others: Any) -> Any:
    return SimpleNamespace(pk=pk, is_authenticated=True, **others)


def test_identity_of_a_user_is_the_primary_key() -> None:
    from django.contrib.auth.models import User

    make_tables()
    saved = User(pk=7, username="ada")
    assert part(connection_token(saved))["sub"] == 7
    assert part(connection_token(SimpleLazyObject(lambda: saved)))["sub"] == 7  # as request.user
    key = uuid.uuid4()
    assert part(connection_token(user(key)))["sub"] == str(key)
    assert part(subscription_token(user("ada"), "news"))["sub"] == "ada"


@pytest.mark.parametrize("identity", ["ada", 7])
def test_identity_may_be_given_itself(identity: Any) -> None:
    assert part(connection_token(identity))["sub"] == identity
    assert "sub" not in part(subscription_token(None, "news"))


def test_anonymous_and_unsaved_users_have_no_token() -> None:
    from django.contrib.auth.models import AnonymousUser, User

    for mint in (connection_token, lambda who: subscription_token(who, "news")):
        with pytest.raises(ValueError, match="nobody is logged in"):
            mint(AnonymousUser())
        with pytest.raises(ValueError, match="not saved"):
            mint(User(username="ada"))
    with pytest.raises(TypeError, match="identity is NoneType"):
        connection_token(None)


def test_options_reach_the_token_and_dates_look_as_in_responses() -> None:
    read = part(
        connection_token(
            7,
            expires_in_s=60,
            claims={"since": datetime.date(2020, 1, 2)},
            channels={"orders:*": ["history"]},
            services={"chat": {"room": ["join"]}},
            token_id="t-1",
        )
    )
    assert read["exp"] - read["iat"] == 60 and (read["since"], read["jti"]) == ("2020-01-02", "t-1")
    assert (read["channels"], read["services"]) == ({"orders:*": ["history"]}, {"chat": {"room": ["join"]}})
    day = datetime.date(2020, 1, 2)
    token = subscription_token(7, ["room", 5], ops=["subscribe"], service="other", info={"at": day}, token_id="t")
    read = part(token)
    assert (read["channel"], read["ops"], read["service"]) == (["room", 5], ["subscribe"], "other")
    assert (read["info"], read["jti"]) == ({"at": "2020-01-02"}, "t")


def test_settings_choose_key_audience_issuer_and_claim() -> None:
    with override_settings(
        SNORKY_TOKEN_HMAC_SECRET=None,
        SNORKY_TOKEN_PRIVATE_KEY=PEM.decode(),
        SNORKY_TOKEN_KEY_ID="2026-11",
        SNORKY_TOKEN_AUDIENCE="app",
        SNORKY_TOKEN_ISSUER="https://shop.example",
        SNORKY_TOKEN_IDENTITY_CLAIM="user_id",
    ):
        token = connection_token(7)
    assert part(token, 0) == {"typ": "JWT", "alg": "ES256", "kid": "2026-11"}
    read = part(token)
    assert (read["user_id"], read["aud"], read["iss"]) == (7, "app", "https://shop.example")


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"SNORKY_TOKEN_HMAC_SECRET": None}, "set either SNORKY_TOKEN_HMAC_SECRET"),
        ({"SNORKY_TOKEN_PRIVATE_KEY": PEM.decode()}, "set either SNORKY_TOKEN_HMAC_SECRET"),
        ({"SNORKY_TOKEN_HMAC_SECRET": "s3cret"}, "hmac_secret has less than 32 bytes"),
        ({"SNORKY_TOKEN_AUDIENCE": ""}, "audience must be"),
    ],
)
def test_wrong_settings_are_named_and_not_shown(changed: dict[str, Any], text: str) -> None:
    with override_settings(**changed), pytest.raises(ImproperlyConfigured, match=text) as caught:
        connection_token(7)
    assert "s3cret" not in str(caught.value)


def test_view_of_the_readme_answers_logged_in_users_only() -> None:
    from django.contrib.auth.models import AnonymousUser, User

    (source,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "login_required" in block]
    names: dict[str, Any] = {}
    exec(source, names)
    request = RequestFactory().post("/realtime-token")
    request.user = AnonymousUser()
    with override_settings(ALLOWED_HOSTS=["testserver"]):
        assert names["realtime_token"](request).status_code == 302
    request.user = User(pk=7)
    read = part(json.loads(names["realtime_token"](request).content)["token"])
    assert (read["sub"], read["shops"]) == (7, [7])
