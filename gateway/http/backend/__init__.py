"""The HTTP endpoint for backends: authorization, request bodies, replies."""
