"""Permissions: rules, owners and tokens decide for each client, channel and operation."""
