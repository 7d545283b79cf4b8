"""Views of Django REST framework with lists that clients can subscribe to.

    GET /tasks/                 GET /tasks/
                                X-Snorky: Subscribe
    -> the list                 -> the list, and X-Subscription-Token: the client acquires it at the gateway

Rules:
- The view's own permissions are checked first. The token is requested before the list is read, so that no change in
  between is lost.
- No cache stores a response with a token; `Vary` keeps responses with and without a token apart.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.utils.cache import patch_cache_control, patch_vary_headers
from rest_framework import generics, mixins
from rest_framework.exceptions import APIException

from snorky.client.django.gateway import authorize_subscription
from snorky.client.errors import SnorkyError, TransportError

__all__ = [
    "ListSubscribeAPIView",
    "ListSubscribeCreateAPIView",
    "ListSubscribeModelMixin",
    "SubscribeModelMixin",
    "SubscriptionUnavailable",
    "subscription_in_response",
]

_F = TypeVar("_F", bound=Callable[..., Any])


class SubscriptionUnavailable(APIException):
    """503: the client asked to subscribe, but the gateway does not reply. The list alone is still available."""

    status_code = 503
    default_detail = "Subscriptions are temporarily unavailable"
    default_code = "unavailable"

    def __init__(self, retry_after_ms: int | None = None) -> None:
        super().__init__()
        if retry_after_ms is not None:
            self.wait = -(-retry_after_ms // 1000)  # seconds; the framework sends it as Retry-After


class SubscribeModelMixin:
    """Defines which deltas a view's subscribers get. Set `dealer` and `dealer_query`, or override the methods."""

    request: Any
    dealer: str | None = None
    dealer_query: Any = None

    def get_dealer(self) -> str:
        """Return the dealer's name. Raises ImproperlyConfigured: `dealer` is not set."""
        if not self.dealer:
            raise ImproperlyConfigured(f"{type(self).__name__}: set dealer, or override get_dealer()")
        return self.dealer

    def get_dealer_query(self) -> Any:
        """Return the query for the dealer, any JSON entity."""
        return self.dealer_query

    def get_subscription_items(self) -> list[dict[str, Any]]:
        """Return all dealers and queries of one subscription."""
        return [{"dealer": self.get_dealer(), "query": self.get_dealer_query()}]

    def requested_subscription(self) -> bool:
        """True if the client asks to subscribe."""
        return bool(self.request.headers.get("X-Snorky", "").strip().lower() == "subscribe")


def subscription_in_response(method: _F) -> _F:
    """Decorate a view's method: it then authorizes a subscription if the request asks for one."""

    @wraps(method)
    def respond(view: SubscribeModelMixin, *args: Any, **kwargs: Any) -> Any:
        token = _authorize(view) if view.requested_subscription() else None
        response = method(view, *args, **kwargs)
        patch_vary_headers(response, ["X-Snorky"])
        if token is not None and response.status_code < 400:
            response["X-Subscription-Token"] = token
            patch_cache_control(response, private=True, no_store=True)
        return response

    return respond  # type: ignore[return-value]  # wraps() cannot keep the whole type


def _authorize(view: SubscribeModelMixin) -> str:
    """Request a token. Raises SubscriptionUnavailable; SnorkyError: the view names an unknown dealer, for example."""
    try:
        return authorize_subscription(view.get_subscription_items())
    except TransportError as error:
        raise SubscriptionUnavailable(error.retry_after_ms) from error
    except SnorkyError as error:
        if error.code == "unavailable" or error.retry_after_ms is not None:
            raise SubscriptionUnavailable(error.retry_after_ms) from error
        raise


class ListSubscribeModelMixin(SubscribeModelMixin, mixins.ListModelMixin):
    """A list() with support for X-Snorky, for view sets."""

    @subscription_in_response
    def list(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """List, and subscribe if asked."""
        return super().list(request, *args, **kwargs)


class ListSubscribeAPIView(ListSubscribeModelMixin, generics.GenericAPIView):
    """A view that lists."""

    def get(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """List, and subscribe if asked."""
        return self.list(request, *args, **kwargs)


class ListSubscribeCreateAPIView(mixins.CreateModelMixin, ListSubscribeAPIView):
    """A view that lists and creates."""

    def post(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Create one."""
        return self.create(request, *args, **kwargs)
