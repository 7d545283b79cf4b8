"""SockJS 1.x: access to the same registry for browsers behind proxies that block WebSockets."""

from snorky.gateway.http.sockjs.handler import SockJSHandler

__all__ = ["SockJSHandler"]
