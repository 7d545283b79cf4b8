"""From TOML and the environment to frozen, checked settings, and the rules of channels."""
