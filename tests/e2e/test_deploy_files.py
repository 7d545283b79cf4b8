"""The shipped deployment files, checked as far as possible without a container engine: the tools that read these files
accept them, and their statements about each other are true."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from snorky.gateway.config import settings as gateway_settings
from tests.support.deploy.files import DEPLOY, compose, image_environment, image_value, make_secrets, manifests, run
from tests.support.processes.balancer import Backend, haproxy_config, nginx_command, nginx_config
from tests.support.processes.tools import ROOT, free_port, program

BACKENDS = [Backend(18001, 18101), Backend(18002, 18102), Backend(18003, 18103)]


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


def test_no_secret_is_in_the_environment_and_only_the_balancers_port_is_public() -> None:
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


def test_every_awaited_service_has_a_health_check() -> None:
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
    (config_map,) = [each for each in manifests() if each["kind"] == "ConfigMap"]
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
    kinds = {each["kind"] for each in manifests()}
    assert {"Deployment", "Service", "PodDisruptionBudget"} <= kinds
    for manifest in manifests():
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_kubernetes_asks_the_right_questions_and_waits_for_the_drain() -> None:
    by_kind = {each["kind"]: each for each in manifests()}
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
def test_the_alerts_pass_their_promtool_tests() -> None:
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
def test_every_alert_has_a_summary_and_an_action(rule: dict[str, Any]) -> None:
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
