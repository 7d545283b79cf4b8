"""HTTP: everything that knows aiohttp."""
