"""Services that come with the gateway."""
