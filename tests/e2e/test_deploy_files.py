"""What we ship for deployment, checked as far as it can be without a container engine: the tools that read these files
read them, and the programs that they configure run with them."""

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import redis
import yaml
from compose_spec import PyCompose

from gateway import settings as gateway_settings
from tests.support.balancer import Backend, haproxy_config, nginx_command, nginx_config
from tests.support.nodes import GATEWAY, NodeProcess, RedisProcess, clean_environment
from tests.support.tools import ROOT, eventually, free_port, program, venv_program

DEPLOY = ROOT / "deploy"
BACKENDS = [Backend(18001, 18101), Backend(18002, 18102), Backend(18003, 18103)]


def run(*argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=cwd, text=True, capture_output=True, timeout=120, env=clean_environment())


# -- Dockerfile ----------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(name.upper(), rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def final_stage() -> list[tuple[str, str]]:
    found = instructions()
    last = max(index for index, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


def image_value(name: str) -> str:
    (value,) = [rest for each, rest in final_stage() if each == name]
    return value


def image_environment() -> dict[str, str]:
    pairs = [pair for name, rest in final_stage() if name == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def compose() -> dict[str, Any]:
    """The compose file as an engine sees it: variables at their defaults, anchors merged."""
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    text = re.sub(r"(?<!\$)\$\{\w+:-([^}]*)\}", r"\1", text)
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def container_argv(command: Sequence[str]) -> list[str]:
    """What a container runs: the image's entry point, whose `snorky` is here the one of the environment under test."""
    entrypoint = json.loads(image_value("ENTRYPOINT"))
    assert entrypoint == ["snorky"]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts["snorky"] == f"{GATEWAY[-1]}:main"
    return [*GATEWAY, *command]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    result = run(venv_program("hadolint"), "--no-color", str(ROOT / "Dockerfile"))
    assert result.returncode == 0, result.stdout


def test_the_image_runs_as_a_numeric_user_that_is_not_root() -> None:
    user, _, group = image_value("USER").partition(":")
    assert int(user) >= 1000
    assert int(group) >= 1000


def test_entry_point_command_and_health_check_need_no_shell() -> None:
    assert json.loads(image_value("ENTRYPOINT")) == ["snorky"]
    assert json.loads(image_value("CMD")) == ["serve"]
    check = image_value("HEALTHCHECK")
    argv = json.loads(check[check.index("CMD") + 3 :])
    assert argv[:2] == ["python", "-c"]


def test_the_image_is_told_to_stop_as_the_node_listens() -> None:
    assert image_value("STOPSIGNAL") == "SIGTERM"


def test_the_final_stage_builds_nothing_and_takes_only_what_was_built() -> None:
    stage = final_stage()
    assert not [rest for name, rest in stage if name in ("RUN", "ADD")]
    assert all(rest.startswith("--from=build ") for name, rest in stage if name == "COPY")


def test_pip_leaves_no_cache_in_the_image() -> None:
    commands = " ".join(rest for name, rest in instructions() if name == "RUN")
    installs = re.findall(r"pip (?:wheel|install)[^&]*", commands)
    assert installs
    assert all("--no-cache-dir" in each for each in installs)


def ignored_by_docker(path: str) -> bool:
    """Whether .dockerignore keeps a file out of the build: the last rule that matches wins."""
    is_ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        heads = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        names = parts if "**/" in rule else heads
        if any(fnmatch(each, pattern) for each in names):
            is_ignored = not rule.startswith("!")
    return is_ignored


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        "deploy/secrets/api_key",
        "tests/conftest.py",
        ".venv/bin/python",
        ".env",
        "gateway/__pycache__/a.pyc",
    ],
)
def test_the_build_sees_no_secret_and_nothing_it_does_not_need(path: str) -> None:
    assert ignored_by_docker(path)


def test_the_wheel_of_what_the_build_sees_holds_all_of_both_packages(tmp_path: Path) -> None:
    context = tmp_path / "context"
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.split("\n")
    for name in filter(None, tracked):
        if not ignored_by_docker(name) and (ROOT / name).is_file():
            target = context / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
    built = run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(context)
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    shutil.unpack_archive(wheel, installed, "zip")
    expected = {
        str(path.relative_to(ROOT))
        for package in ("gateway", "services")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    there = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert expected - there == set()
    code = "import gateway, services; print(gateway.__file__, services.__file__)"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=clean_environment({"PYTHONPATH": str(installed)}),
        text=True,
        capture_output=True,
        check=True,
    )
    assert found.stdout.count(str(installed)) == 2


# -- the container's command ---------------------------------------------------------------------------------


def test_the_image_by_itself_refuses_to_serve_everybody() -> None:
    env = {name: value for name, value in image_environment().items() if name.startswith("SNORKY_")}
    result = subprocess.run(
        container_argv(json.loads(image_value("CMD"))),
        cwd=ROOT,
        env=clean_environment(env),
        text=True,
        capture_output=True,
        timeout=30,
    )
    assert result.returncode != 0
    assert "--insecure" in result.stderr + result.stdout
    assert "api_key" in result.stderr + result.stdout


async def health_check(argv: Sequence[str], env: Mapping[str, str]) -> int:
    process = await asyncio.create_subprocess_exec(*argv, env=clean_environment(env), stderr=asyncio.subprocess.DEVNULL)
    async with asyncio.timeout(10):
        return await process.wait()


@pytest.mark.needs("redis-server")
async def test_the_composed_container_becomes_ready_and_healthy_and_drains_in_time(tmp_path: Path) -> None:
    service = compose()["services"]["node-1"]
    secrets = make_secrets(tmp_path / "secrets")
    conf, port = redis_files(tmp_path, secrets)
    ports = {"SNORKY_PUBLIC__PORT": str(free_port()), "SNORKY_PRIVATE__PORT": str(free_port())}
    env = {name: value for name, value in image_environment().items() if name.startswith("SNORKY_")}
    env |= {name: value.replace("/run/secrets", str(secrets)) for name, value in service["environment"].items()} | ports
    (secrets / "redis_url_node").chmod(0o600)
    url = (secrets / "redis_url_node").read_text().replace("redis:6379", f"127.0.0.1:{port}")
    (secrets / "redis_url_node").write_text(url)
    async with (
        RedisProcess.running(tmp_path, conf=conf, port=port),
        NodeProcess.running(env, argv=container_argv(service["command"])) as node,
    ):
        assert str(node.public_port) == ports["SNORKY_PUBLIC__PORT"]

        async def is_ready() -> bool:
            return await node.status("/readyz") == 200

        await eventually(is_ready, within_s=6, what="/readyz is 200 with the shipped Redis and its ACL")
        check = image_value("HEALTHCHECK")
        argv = json.loads(check[check.index("CMD") + 3 :])
        argv[0] = sys.executable
        assert await health_check(argv, env) == 0
        node.terminate()
        grace_s = float(service["stop_grace_period"].removesuffix("s"))
        assert await node.wait(within_s=grace_s) == 0, node.log
        assert await health_check(argv, env) == 1


# -- compose -------------------------------------------------------------------------------------------------


def test_the_compose_file_is_valid() -> None:
    PyCompose.from_json(json.dumps(compose())).validate()  # refuses unknown keys, values and references


def test_three_nodes_run_the_same_with_the_same_settings() -> None:
    services = compose()["services"]
    nodes = [services[f"node-{number}"] for number in (1, 2, 3)]
    for node in nodes:
        del node["networks"]["edge"]["ipv4_address"]
    assert nodes[0] == nodes[1] == nodes[2]


@pytest.mark.parametrize("name", ["redis", "node-1", "node-2", "node-3", "nginx", "prometheus"])
def test_every_container_is_hardened(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service and "cap_add" not in service
    assert re.search(r":[\w.-]*\d|:dev$", service["image"]), "no floating tag"
    if not name.startswith("node"):
        assert int(service["user"].split(":")[0]) > 0


def test_a_node_may_drain_before_it_is_killed() -> None:
    service = compose()["services"]["node-1"]
    drain_grace_s = float(service["environment"]["SNORKY_PUBLIC__DRAIN_GRACE_S"])
    assert float(service["stop_grace_period"].removesuffix("s")) >= drain_grace_s + 5


def test_descriptors_suffice_for_the_limit_of_connections() -> None:
    assert compose()["services"]["node-1"]["ulimits"]["nofile"]["soft"] > gateway_settings.Limits().connections


def test_no_secret_is_in_the_environment_and_only_the_balancer_is_published_to_everybody() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            assert variable.endswith("_FILE") or not re.search("KEY|PASSWORD|REDIS_URL", variable), (
                name,
                variable,
                value,
            )
        for port in service.get("ports", []):
            assert name == "nginx" or port.startswith("127.0.0.1:"), name


def test_nodes_believe_the_forwarded_address_of_the_balancer_alone() -> None:
    services = compose()["services"]
    trusted = json.loads(services["node-1"]["environment"]["SNORKY_PUBLIC__TRUSTED_PROXIES"])
    assert trusted == [services["nginx"]["networks"]["edge"]["ipv4_address"] + "/32"]


def test_the_balancer_knows_the_nodes_by_the_addresses_that_they_have() -> None:
    services = compose()["services"]
    addresses = {f"node-{n}": services[f"node-{n}"]["networks"]["edge"]["ipv4_address"] for n in (1, 2, 3)}
    assert services["nginx"]["extra_hosts"] == [f"{name}:{address}" for name, address in addresses.items()]


def test_nothing_waits_for_a_service_that_cannot_say_that_it_is_healthy() -> None:
    services = compose()["services"]
    image_has_check = bool(image_value("HEALTHCHECK"))
    for service in services.values():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other] or (other.startswith("node") and image_has_check)


def test_every_mounted_file_is_shipped_or_made_by_the_script(tmp_path: Path) -> None:
    document = compose()
    for service in document["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).is_file(), source
            else:
                assert source in document["volumes"]
    made = {path.name for path in make_secrets(tmp_path / "secrets").iterdir()}
    assert {Path(secret["file"]).name for secret in document["secrets"].values()} <= made


# -- settings that the files name ----------------------------------------------------------------------------


def test_every_setting_in_the_files_is_one_that_the_gateway_knows(tmp_path: Path) -> None:
    secrets = make_secrets(tmp_path / "secrets")
    manifests = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))
    (config_map,) = [each for each in manifests if each["kind"] == "ConfigMap"]
    image = {name: value for name, value in image_environment().items() if name.startswith("SNORKY_")}
    for env in (compose()["services"]["node-1"]["environment"], config_map["data"]):
        environ = {
            name: re.sub(r"/run/secrets(/snorky)?", str(secrets), value) for name, value in (image | env).items()
        }
        loaded = gateway_settings.load(None, environ)
        assert loaded.private.api_key is not None
        assert loaded.private.api_key.matches((secrets / "api_key").read_text())
        assert loaded.redis_url.startswith("redis://node:")
        assert loaded.problems(insecure=True) == []


def test_the_balancers_wait_longer_than_a_node_needs_to_notice_a_dead_client() -> None:
    half_open_s = 25  # promised
    for name, pattern in (
        ("nginx.conf", r"proxy_(?:read|send)_timeout (\d+)s;"),
        ("haproxy.cfg", r"timeout tunnel (\d+)s"),
    ):
        found = [int(each) for each in re.findall(pattern, (DEPLOY / name).read_text(encoding="utf-8"))]
        assert found
        assert all(each > max(half_open_s, gateway_settings.Public().ping_interval_s) for each in found)


# -- secrets -------------------------------------------------------------------------------------------------


def make_secrets(directory: Path) -> Path:
    result = run("sh", str(DEPLOY / "make-secrets.sh"), str(directory))
    assert result.returncode == 0, result.stderr
    return directory


def test_made_secrets_are_hidden_unprinted_and_never_made_twice(tmp_path: Path) -> None:
    result = run("sh", str(DEPLOY / "make-secrets.sh"), str(tmp_path / "secrets"))
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    contents = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert len(contents["api_key"]) == 64
    assert not any(secret in result.stdout + result.stderr for secret in contents.values())
    again = run("sh", str(DEPLOY / "make-secrets.sh"), str(tmp_path / "secrets"))
    assert again.returncode == 1
    assert contents == {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}


def test_secrets_are_in_no_commit() -> None:
    assert run("git", "check-ignore", "-q", "deploy/secrets/api_key", cwd=ROOT).returncode == 0


# -- Redis ---------------------------------------------------------------------------------------------------


def redis_files(directory: Path, secrets: Path) -> tuple[Path, int]:
    """The shipped redis.conf with this test's folders and port. Returns it and the port."""
    port = free_port()
    text = (DEPLOY / "redis" / "redis.conf").read_text(encoding="utf-8")
    (directory / "data").mkdir()
    for shipped, here in (
        ("\nport 6379\n", f"\nport {port}\n"),
        ("\nbind * -::*\n", "\nbind 127.0.0.1\n"),
        ("\ndir /data\n", f"\ndir {directory / 'data'}\n"),
        ("\naclfile /etc/redis/users.acl\n", f"\naclfile {secrets / 'users.acl'}\n"),
    ):
        assert text.count(shipped) == 1, shipped
        text = text.replace(shipped, here)
    conf = directory / "redis.conf"
    conf.write_text(text, encoding="utf-8")
    return conf, port


# What each user needs, and what would let it out of the prefix or harm the others.
PERMITTED = {
    "node": [
        ["PUBLISH", "snorky:{pubsub:news}", "1"],
        ["SPUBLISH", "snorky:{pubsub:news}", "1"],
        ["PUBSUB", "NUMSUB", "snorky:{pubsub:news}"],
        ["SET", "snorky:nodes:a", "1", "PX", "8000"],
        ["EVAL", "#!lua\nreturn redis.call('GET', KEYS[1])", "1", "snorky:nodes:a"],
        ["XADD", "snorky:{pubsub:news}:stream", "*", "k", "v"],
        ["INFO"],
        ["ROLE"],
        ["TIME"],
        ["PING"],
        ["CLIENT", "SETNAME", "snorky"],
    ],
    "publisher": [["PUBLISH", "snorky:{pubsub:news}", "1"], ["SPUBLISH", "snorky:{pubsub:news}", "1"], ["PING"]],
    "metrics": [["INFO"], ["SLOWLOG", "LEN"], ["LATENCY", "LATEST"], ["PING"]],
}
FORBIDDEN_TO_ALL = [
    ["PUBLISH", "other:{pubsub:news}", "1"],
    ["PUBLISH", "snorky2", "1"],
    ["SET", "other", "1"],
    ["GET", "other"],
    ["KEYS", "*"],
    ["SCAN", "0"],
    ["RANDOMKEY"],
    ["PUBSUB", "CHANNELS"],
    ["FLUSHALL"],
    ["FLUSHDB"],
    ["SWAPDB", "0", "1"],
    ["CONFIG", "GET", "*"],
    ["CONFIG", "SET", "maxmemory", "0"],
    ["ACL", "LIST"],
    ["ACL", "SETUSER", "node", "allkeys"],
    ["CLIENT", "LIST"],
    ["CLIENT", "KILL", "TYPE", "pubsub"],
    ["CLIENT", "TRACKING", "ON", "BCAST"],
    ["MONITOR"],
    ["SHUTDOWN"],
    ["SAVE"],
    ["REPLICAOF", "NO", "ONE"],
    ["MODULE", "LIST"],
    ["SCRIPT", "FLUSH"],
    ["FUNCTION", "FLUSH"],
    ["EVAL", "return redis.call('SET', 'other', 1)", "0"],
]
FORBIDDEN = {
    "publisher": [
        ["EVAL", "return 1", "0"],
        ["SET", "snorky:nodes:a", "1"],
        ["GET", "snorky:nodes:a"],
        ["SUBSCRIBE", "snorky:{pubsub:news}"],
        ["INFO"],
    ],
    "metrics": [
        ["PUBLISH", "snorky:{pubsub:news}", "1"],
        ["GET", "snorky:nodes:a"],
        ["SUBSCRIBE", "snorky:a"],
        ["EVAL", "return 1", "0"],
    ],
    "node": [["SUBSCRIBE", "other:a"], ["PSUBSCRIBE", "*"]],
}


@pytest.mark.needs("redis-server")
async def test_each_redis_user_may_what_it_needs_and_nothing_beyond_the_prefix(tmp_path: Path) -> None:
    secrets = make_secrets(tmp_path / "secrets")
    conf, port = redis_files(tmp_path, secrets)
    passwords = {"metrics": (secrets / "redis_password_metrics").read_text()}
    for user in ("node", "publisher"):
        url = (secrets / f"redis_url_{user}").read_text()
        passwords[user] = url.removeprefix(f"redis://{user}:").partition("@")[0]
    async with RedisProcess.running(tmp_path, conf=conf, port=port):
        for user, password in passwords.items():
            for command in PERMITTED[user]:
                with redis.Redis(port=port, username=user, password=password) as client:
                    client.execute_command(*command)
            for command in FORBIDDEN_TO_ALL + FORBIDDEN[user]:
                with redis.Redis(port=port, username=user, password=password) as client:
                    with pytest.raises(
                        (redis.exceptions.NoPermissionError, redis.exceptions.ResponseError),
                        match=r"(?i)permission|can't access|ACL",
                    ):
                        client.execute_command(*command)
        with redis.Redis(port=port) as stranger, pytest.raises(redis.exceptions.AuthenticationError):
            stranger.ping()


@pytest.mark.needs("redis-server")
async def test_the_shipped_redis_bounds_memory_and_evicts_nothing(tmp_path: Path) -> None:
    secrets = make_secrets(tmp_path / "secrets")
    (secrets / "users.acl").chmod(0o600)
    with (secrets / "users.acl").open("a") as acl:
        acl.write("user inspector on nopass +config|get\n")
    conf, port = redis_files(tmp_path, secrets)
    async with RedisProcess.running(tmp_path, conf=conf, port=port):
        with redis.Redis(port=port, username="inspector", password="any", decode_responses=True) as client:
            config = client.config_get("*")
    assert config["maxmemory-policy"] == "noeviction"
    limits = re.search(r"pubsub (\d+) (\d+) (\d+)", config["client-output-buffer-limit"])
    assert limits is not None
    nodes = 3
    assert nodes * int(limits[1]) < int(config["maxmemory"]) / 2, "stalled nodes alone must not fill it"
    assert config["timeout"] == "0", "subscribers are silent for long"


# -- nginx, HAProxy ------------------------------------------------------------------------------------------


@pytest.mark.needs("nginx")
def test_nginx_accepts_the_shipped_configuration(tmp_path: Path) -> None:
    result = run(*nginx_command(nginx_config(tmp_path, free_port(), BACKENDS), "-t"))
    assert result.returncode == 0, result.stderr
    assert "warn" not in result.stderr


@pytest.mark.needs("haproxy")
def test_haproxy_accepts_the_shipped_configuration(tmp_path: Path) -> None:
    result = run(program("haproxy"), "-c", "-f", str(haproxy_config(tmp_path, free_port(), BACKENDS)))
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr


# -- Kubernetes ----------------------------------------------------------------------------------------------


def test_every_kubernetes_object_is_valid() -> None:
    manifests = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))
    kinds = {each["kind"] for each in manifests}
    assert {"Deployment", "Service", "PodDisruptionBudget"} <= kinds
    for manifest in manifests:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_kubernetes_asks_the_right_questions_and_waits_for_the_drain() -> None:
    manifests = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))
    by_kind = {each["kind"]: each for each in manifests}
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "private"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "private"}
    before_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    drain_grace_s = float(by_kind["ConfigMap"]["data"]["SNORKY_PUBLIC__DRAIN_GRACE_S"])
    assert pod["terminationGracePeriodSeconds"] >= before_s + drain_grace_s + 10
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert str(pod["securityContext"]["runAsUser"]) == image_value("USER").partition(":")[0]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["args"] == compose()["services"]["node-1"]["command"]


# -- Prometheus ----------------------------------------------------------------------------------------------


@pytest.mark.needs("promtool")
def test_promtool_accepts_configuration_and_rules() -> None:
    for command in (["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"]):
        result = run(program("promtool"), *command, cwd=DEPLOY)
        assert result.returncode == 0, result.stdout + result.stderr


def alert_rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


@pytest.mark.needs("promtool")
def test_the_alerts_fire_and_keep_quiet_as_their_tests_say() -> None:
    result = run(program("promtool"), "test", "rules", "alerts_test.yml", cwd=DEPLOY)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.needs("promtool")
@pytest.mark.parametrize(
    ("broken", "side"),
    [("vector(1) < 0", "exp"), ('group by (instance) (up{job="snorky"})', "got")],
    ids=["never", "always"],
)
def test_every_alert_that_is_broken_turns_its_tests_red(broken: str, side: str, tmp_path: Path) -> None:
    document = yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))
    for group in document["groups"]:
        for rule in group["rules"]:
            rule |= {"expr": broken, "for": "0s"}
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(document), encoding="utf-8")
    shutil.copyfile(DEPLOY / "alerts_test.yml", tmp_path / "alerts_test.yml")
    result = run(program("promtool"), "test", "rules", "alerts_test.yml", cwd=tmp_path)
    assert result.returncode != 0
    told = "".join(
        re.findall(rf"^\s*{side}:.*(?:\n(?!\s*(?:exp|got|name|expr):).*)*", result.stdout + result.stderr, re.MULTILINE)
    )
    assert [rule["alert"] for rule in alert_rules() if rule["alert"] not in told] == []


@pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: str(rule["alert"]))
def test_every_alert_says_what_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule["annotations"]) == {"summary", "description", "action"}
    assert rule["labels"]["severity"] in ("page", "ticket")


def test_every_node_that_runs_is_scraped() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = [each for each in config["scrape_configs"] if each["job_name"] == "snorky"]
    targets = job["static_configs"][0]["targets"]
    nodes = [name for name in compose()["services"] if name.startswith("node-")]
    assert targets == [f"{name}:8003" for name in nodes]
    assert image_environment()["SNORKY_PRIVATE__PORT"] == "8003"


def test_scripts_can_be_run() -> None:
    assert os.access(DEPLOY / "make-secrets.sh", os.X_OK)
