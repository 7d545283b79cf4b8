"""Print a token that is valid for an hour, as a web application does at login."""

import os
import sys
import time

import jwt

if __name__ == "__main__":
    now_s = int(time.time())
    claims = {"sub": sys.argv[1], "iat": now_s, "exp": now_s + 3600}
    print(jwt.encode(claims, os.environ["SNORKY_AUTH__HMAC_SECRET"], algorithm="HS256"))
