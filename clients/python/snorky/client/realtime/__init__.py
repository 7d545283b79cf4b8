"""The realtime client: `session` has the logic without I/O, `client` adds connections. See `snorky.client.aio`."""
