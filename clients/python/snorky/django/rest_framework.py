"""Views of Django REST framework whose lists can be subscribed to.

    GET /tasks/                 GET /tasks/
                                X-Snorky: Subscribe
    -> the list                 -> the list, and X-Subscription-Token: what the client acquires at the gateway

Rules:
- The view's own permissions come first. The token is asked for before the list is read, so that nothing is lost
  between the two.
- An answer with a token is kept by no cache, and one without is told apart by `Vary`.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.utils.cache import patch_cache_control, patch_vary_headers
from rest_framework import generics, mixins
from rest_framework.exceptions import APIException

from snorky.django.gateway import authorize_subscription
from snorky.errors import SnorkyError, TransportError

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
    """503: a subscription was asked for, and the gateway does not answer. The list alone can still be had."""

    status_code = 503
    default_detail = "Subscriptions are temporarily unavailable"
    default_code = "unavailable"

    def __init__(self, retry_after_ms: int | None = None) -> None:
        super().__init__()
        if retry_after_ms is not None:
            self.wait = -(-retry_after_ms // 1000)  # seconds; the framework makes Retry-After of it


class SubscribeModelMixin:
    """Says what a view's subscribers may hear. Set `dealer` and `dealer_query`, or override the methods."""

    request: Any
    dealer: str | None = None
    dealer_query: Any = None

    def get_dealer(self) -> str:
        """Tell the name of the dealer. Raises ImproperlyConfigured: `dealer` is not set."""
        if not self.dealer:
            raise ImproperlyConfigured(f"{type(self).__name__}: set dealer, or override get_dealer()")
        return self.dealer

    def get_dealer_query(self) -> Any:
        """Tell the query for the dealer, any JSON entity."""
        return self.dealer_query

    def get_subscription_items(self) -> list[dict[str, Any]]:
        """Tell all dealers and queries of one subscription."""
        return [{"dealer": self.get_dealer(), "query": self.get_dealer_query()}]

    def requested_subscription(self) -> bool:
        """True if the client asks to subscribe."""
        return bool(self.request.headers.get("X-Snorky", "").strip().lower() == "subscribe")


def subscription_in_response(method: _F) -> _F:
    """Let a method of a view, which makes a response, authorize a subscription if the request asks for one."""

    @wraps(method)
    def respond(view: SubscribeModelMixin, *args: Any, **kwargs: Any) -> Any:
        token = _authorize(view) if view.requested_subscription() else None
        response = method(view, *args, **kwargs)
        patch_vary_headers(response, ["X-Snorky"])
        if token is not None and response.status_code < 400:
            response["X-Subscription-Token"] = token
            patch_cache_control(response, private=True, no_store=True)
        return response

    return respond  # type: ignore[return-value]  # wraps() keeps what can be kept of the type


def _authorize(view: SubscribeModelMixin) -> str:
    """Get a token. Raises SubscriptionUnavailable; SnorkyError: the view asks for what there is not."""
    try:
        return authorize_subscription(view.get_subscription_items())
    except TransportError as error:
        raise SubscriptionUnavailable(error.retry_after_ms) from error
    except SnorkyError as error:
        if error.code == "unavailable" or error.retry_after_ms is not None:
            raise SubscriptionUnavailable(error.retry_after_ms) from error
        raise


class ListSubscribeModelMixin(SubscribeModelMixin, mixins.ListModelMixin):
    """A list() that understands X-Snorky, for view sets."""

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
