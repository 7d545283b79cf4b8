"""The realtime client, without and with its connections: `session` decides, `client` does. Use `snorky.aio.Client`."""
