"""Tokens for the gateway's clients, signed with the key that the Django settings name.

connection_token(request.user, channels={f"shop:{shop.pk}:*": ["subscribe", "history"]})

Settings: SNORKY_TOKEN_HMAC_SECRET or SNORKY_TOKEN_PRIVATE_KEY, and more in the README; read at each call, so tests may
override them. Needs PyJWT: snorky-client[tokens].
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from snorky.client.django.gateway import snapshot
from snorky.client.tokens import Permissions, Signer

__all__ = ["configured_signer", "connection_token", "subscription_token"]


@lru_cache(maxsize=4)
def _signer(secret: str | None, private_key: str | bytes | None, others: tuple[tuple[str, Any], ...]) -> Signer:
    try:
        return Signer(hmac_secret=secret, private_key=private_key, **dict(others))
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"SNORKY_TOKEN_...: {error}") from None  # from None: a traceback shows arguments


def configured_signer() -> Signer:
    """Return the signer that the settings name. Raises ImproperlyConfigured; ImportError: PyJWT is missing."""
    secret = getattr(settings, "SNORKY_TOKEN_HMAC_SECRET", None)
    private_key = getattr(settings, "SNORKY_TOKEN_PRIVATE_KEY", None)
    if (secret is None) == (private_key is None):
        raise ImproperlyConfigured(
            "set either SNORKY_TOKEN_HMAC_SECRET, the gateway's [auth] hmac_secret, or SNORKY_TOKEN_PRIVATE_KEY, a PEM"
        )
    others = {
        "key_id": getattr(settings, "SNORKY_TOKEN_KEY_ID", None),
        "audience": getattr(settings, "SNORKY_TOKEN_AUDIENCE", None),
        "issuer": getattr(settings, "SNORKY_TOKEN_ISSUER", None),
        "identity_claim": getattr(settings, "SNORKY_TOKEN_IDENTITY_CLAIM", None),
    }
    return _signer(secret, private_key, tuple((name, value) for name, value in others.items() if value is not None))


def connection_token(
    user_or_identity: Any,
    *,
    expires_in_s: float = 3600,
    claims: Mapping[str, Any] | None = None,
    channels: Permissions | None = None,
    services: Mapping[str, Permissions] | None = None,
    token_id: str | None = None,
) -> str:
    """Mint a token with which a browser of this user connects to the gateway.

    user_or_identity: a logged-in user, whose identity is its primary key, or an identity. claims: dates, decimals and
    UUIDs look as in Django's own responses. The others: as for `Signer.connection_token`. Raises ValueError, TypeError:
    the user is anonymous, or a gateway would refuse a value; ImproperlyConfigured.
    """
    return configured_signer().connection_token(
        _identity(user_or_identity),
        expires_in_s=expires_in_s,
        claims=None if claims is None else snapshot(claims),
        channels=channels,
        services=services,
        token_id=token_id,
    )


def subscription_token(
    user_or_identity: Any,
    channel: Any,
    *,
    expires_in_s: float = 3600,
    ops: Sequence[str] | None = None,
    service: str | None = None,
    info: Any = None,
    token_id: str | None = None,
) -> str:
    """Mint a token that permits one channel to this user.

    user_or_identity: as for `connection_token`; None = to every client without an identity. info: as claims there. The
    others: as for `Signer.subscription_token`. Raises ValueError, TypeError, ImproperlyConfigured.
    """
    return configured_signer().subscription_token(
        None if user_or_identity is None else _identity(user_or_identity),
        channel,
        expires_in_s=expires_in_s,
        ops=ops,
        service=service,
        info=snapshot(info),
        token_id=token_id,
    )


def _identity(user: Any) -> Any:
    """Return the identity of a user: its primary key, a UUID as text; of anything else, the value itself."""
    if not hasattr(user, "is_authenticated"):
        return user
    if not user.is_authenticated:
        raise ValueError("nobody is logged in: the user is anonymous")
    if user.pk is None:
        raise ValueError("the user is not saved, so it has no primary key")
    return str(user.pk) if isinstance(user.pk, UUID) else user.pk
