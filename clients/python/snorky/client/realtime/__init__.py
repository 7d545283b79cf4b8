"""The realtime client. `session` has the logic without I/O; `client` adds connections. Use `snorky.client.aio.Client`."""
