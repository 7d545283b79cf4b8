"""The error texts that clients match on, each with its code; and what other tests cover instead of the table.

tests/unit/protocol/test_protocol_table.py compares this with the documents, the services' source, and the table.
"""

__all__ = ["CODES", "ELSEWHERE"]

CODES = {
    # any service
    "Unknown command": "unknown_command",
    "Invalid params": "invalid_params",
    "Internal error": "internal",
    "Not authorized": "not_authorized",
    "Not authenticated": "not_authenticated",
    "Unknown service": "unknown_service",
    # envelopes
    "Malformed JSON (byte 3)": "invalid_message",
    "Malformed JSON (byte 4)": "invalid_message",
    "Malformed JSON (byte 7)": "invalid_message",
    "Malformed JSON (truncated)": "invalid_message",
    "Malformed MessagePack": "invalid_message",
    "Number out of range": "invalid_message",
    "Nested too deeply": "invalid_message",
    "Too many values": "invalid_message",
    "Invalid UTF-8": "invalid_message",
    'Expected an object with "service" and "message"': "invalid_envelope",
    'Missing "service"': "invalid_envelope",
    'Missing "message"': "invalid_envelope",
    '"service" must be a string of a-z, 0-9, _ and -': "invalid_envelope",
    # channels and similar
    "Channel is longer than 255 bytes in canonical form": "invalid_channel",
    "Integer in a channel is beyond 2^53 - 1": "invalid_channel",
    # pubsub
    "Already subscribed": "already_subscribed",
    "Not subscribed": "not_subscribed",
    "Too many members": "limit_exceeded",
    "Position is of an earlier history": "position_lost",
    # chat, cursors
    "Already joined": "already_joined",
    "Not joined": "not_joined",
    "Reused handle": "reused_handle",
    "Too many cursors": "too_many_cursors",
    "No such cursor": "no_such_cursor",
    # messaging
    "Name already registered": "name_already_registered",
    "Name not allowed": "name_not_allowed",
    "Invalid participant": "invalid_participant",
    "Unknown participant": "unknown_participant",
    "Invalid sender": "invalid_sender",
    "Unknown destination": "unknown_destination",
    "Too many names": "limit_exceeded",
    # datasync
    "token must be string": "invalid_token",
    "No such subscription": "no_such_subscription",
    "dealer should be a dealer name": "invalid_dealer",
    "No such dealer": "no_such_dealer",
    "Missing field 'dealer'": "missing_field",
    "Missing field 'query'": "missing_field",
    "Missing field": "missing_field",
    "Invalid query": "invalid_query",
    "Invalid delta type": "invalid_delta_type",
    "model must be string": "invalid_model",
    # auth
    "Already authenticated": "already_authenticated",
    "Invalid token": "invalid_token",
    "Token expired": "invalid_token",
    "Revoked": "revoked",
    "Subscription token expired": "token_expired",
    "Tokens are not configured": "not_configured",
    # control
    "Name an identity, a connection or a channel": "invalid_params",
    "There is no such service": "invalid_params",
    "This service takes no subscriptions of the backend": "invalid_params",
    # the backend's port
    "Wrong or missing X-Backend-Key": "unauthorized",
    "Browsers need a key: set [private] api_key": "forbidden",
    "The request is too large": "too_large",
    "A batch has at most 1000 envelopes": "invalid_message",
}

# Cases that need a fault or a limit, which the table cannot have: code or close code -> a test that has it, or its
# scenario, and a text in that file.
ELSEWHERE = {
    "unavailable": ("tests/unit/services/test_pubsub.py", "unavailable"),
    "rate_limited": ("tests/unit/sdk/test_registry.py", "rate_limited"),
    "connection_closed": ("tests/unit/test_node_subscribing.py", "ConnectionClosed"),
    "refused": ("tests/support/scenarios/rpc_service.py", "refused"),
    "invalid": ("tests/unit/delivery/test_fan_out.py", "invalid"),
    "unknown_version": ("tests/unit/delivery/test_fan_out.py", "unknown_version"),
    "protocol_fault": ("tests/unit/http/websocket/test_protocol.py", "protocol_fault"),
    "timeout": ("tests/unit/http/backend/test_routes.py", "timeout"),
    "no_reply": ("tests/unit/http/backend/test_routes.py", "no_reply"),
    "configuration": ("tests/unit/services/test_datasync.py", "ConfigurationError"),
    "1002": ("tests/unit/protocol/test_autobahn_cases.py", "1002"),
    "1003": ("tests/unit/http/websocket/test_protocol.py", "1003"),
    "1007": ("tests/unit/protocol/test_autobahn_cases.py", "1007"),
    "1008": ("tests/unit/http/websocket/test_flood.py", "1008"),
    "1009": ("tests/unit/http/websocket/test_protocol.py", "1009"),
    "1011": ("tests/unit/delivery/test_write_queue.py", "1011"),
    "4008": ("tests/unit/http/websocket/test_slow_clients.py", "4008"),
    "4509": ("tests/unit/sdk/test_registry.py", "4509"),
    "4510": ("tests/unit/sdk/test_registry.py", "4510"),
}
