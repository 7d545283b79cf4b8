"""HTTP: all code that uses aiohttp."""
