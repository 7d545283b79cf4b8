"""Translations of the configurations of other servers."""
