"""centrifuge-python's own tests, unmodified from its sdist on PyPI, against a node in place of Centrifugo.

They need a server on port 8000, tokens without `exp`, and a secret of six bytes: `[auth] unsafe_hmac_secret`, which a
node accepts only with --insecure. The options are those of the compose file in the sdist, as Snorky's rules.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.processes.nodes import GATEWAY, NodeProcess, Process

_SDIST = "centrifuge-python==0.7.0"
_DOWNLOAD_S = 120
_RUN_S = 300
_KEPT = {"history_ttl_s": 300, "allow_publish": "subscriber"}
_RULES = [
    {"match": "smallhistory:*", "history": 2, **_KEPT},
    {"match": "*", "history": 100, "presence": True, "join_leave": True, **_KEPT},
]
_ENV = {
    "SNORKY_PUBLIC__PORT": "8000",
    "SNORKY_PUBLIC__CENTRIFUGE_PERSONAL_CHANNELS": "true",
    "SNORKY_AUTH__UNSAFE_HMAC_SECRET": "secret",
    "SNORKY_LIMITS__MESSAGES_PER_S": "10000",
    "SNORKY_SERVICES__AUTH__CLASS": "snorky.services.auth:AuthService",
    "SNORKY_SERVICES__PUBSUB__CLASS": "snorky.services.pubsub:PubSubService",
    "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(_RULES),
}
# functions that make tokens, whose names begin as those of tests do
_NO_TESTS = ("test_get_client_token", "test_get_subscription_token")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Download and unpack the sdist; returns its folder."""
    folder = tmp_path_factory.mktemp("centrifuge")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--no-binary", ":all:", _SDIST], cwd=folder, timeout=_DOWNLOAD_S, check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (unpacked,) = (each for each in folder.iterdir() if each.is_dir())
    return unpacked


@pytest.mark.timeout(_RUN_S + 30)
async def test_all_its_tests_pass(sdist: Path) -> None:
    options = ["-q", "-c", os.devnull, "--rootdir", str(sdist), "-p", "no:cacheprovider", "-p", "no:xdist"]
    options += ["--timeout", "30", "-W", "ignore", *(f"--deselect=tests/test_client.py::{name}" for name in _NO_TESTS)]
    async with NodeProcess.running(_ENV, argv=(*GATEWAY, "serve", "--insecure")) as node:
        assert node.public_port == 8000
        tests = Process([sys.executable, "-m", "pytest", *options, "tests"], cwd=sdist)
        try:
            code = await tests.wait(_RUN_S)
        finally:
            await tests.close()
    assert code == 0, tests.log[-5000:]
    passed, subtests = re.findall(r"(\d+) passed|(\d+) subtests passed", tests.log)[-2:]
    assert int(passed[0]) >= 89 and int(subtests[1]) >= 28, tests.log[-200:]
    assert "skipped" not in tests.log.splitlines()[-1]
    assert "Traceback" not in node.log, node.log[-3000:]
