"""The public port has none of the private port's paths."""

from tests.support.scenarios.site import on_both_loops, running_site


@on_both_loops
async def test_the_public_port_knows_no_private_path() -> None:
    async with running_site() as site:
        for path in ("/backend", "/metrics", "/healthz", "/readyz"):
            client = await site.open()
            await client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            response = await client.response()
            assert response.status == 404
            assert response.headers["x-content-type-options"] == "nosniff"
