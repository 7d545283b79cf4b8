"""SockJS 1.x: the same registry for browsers behind proxies that let no WebSocket through."""

from gateway.http.sockjs.handler import SockJSHandler

__all__ = ["SockJSHandler"]
