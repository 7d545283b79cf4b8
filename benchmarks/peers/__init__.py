"""Other servers for `--peers`: their versions, how they are installed, and a small program for each."""
