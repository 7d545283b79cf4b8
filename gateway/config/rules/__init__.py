"""Rules of channels and names: their patterns, and who may do what."""
