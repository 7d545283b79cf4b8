"""Protocols of other clients than Snorky's, one folder each; see `snorky.gateway.protocol.foreign`."""
