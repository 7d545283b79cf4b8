"""From a token to an identity and a session, until it is revoked or expires."""
