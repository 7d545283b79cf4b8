"""The Redis of deploy/, with its users."""

from dataclasses import dataclass
from pathlib import Path

import redis

# Only for checks: refusals, and the settings of Redis. It is not shipped.
INSPECTOR = "user inspector on nopass +acl|log +config|get\n"


@dataclass
class ShippedRedis:
    """The shipped redis.conf and users.acl, running."""

    port: int
    secrets: Path

    def password(self, user: str) -> str:
        if user == "metrics":
            return (self.secrets / "redis_password_metrics").read_text()
        url = (self.secrets / f"redis_url_{user}").read_text()
        return url.removeprefix(f"redis://{user}:").partition("@")[0]

    def client(self, user: str) -> redis.Redis:
        return redis.Redis(port=self.port, username=user, password=self.password(user))

    def inspector(self) -> redis.Redis:
        return redis.Redis(port=self.port, username="inspector", password="any", decode_responses=True)
