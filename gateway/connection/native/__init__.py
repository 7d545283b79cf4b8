"""An optional extension module that writes to many sockets at once."""
