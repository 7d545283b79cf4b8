"""Server-sent events: channels as an event stream, for EventSource in browsers, curl and scripts."""
