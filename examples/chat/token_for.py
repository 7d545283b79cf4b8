"""Print a token that is valid for an hour, as a web application does at login."""

import os
import sys

from snorky.client.tokens import Signer

if __name__ == "__main__":
    print(Signer(hmac_secret=os.environ["SNORKY_AUTH__HMAC_SECRET"]).connection_token(sys.argv[1]))
