"""The commands of `snorky`, one file each; `gateway.cli` registers them."""
