"""Rules of channels and names: patterns, histories, and permissions."""
