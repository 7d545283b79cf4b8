"""The commands of `snorky`, one file each; `gateway.cli` puts them together."""
