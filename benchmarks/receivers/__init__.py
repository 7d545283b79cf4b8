"""The clients that receive: in C, and the same in Python."""
