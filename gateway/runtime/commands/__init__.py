"""The commands of `snorky`, one file each; `snorky.gateway.cli` registers them."""
