"""deploy/: the files fit their official schemas, and say what the service needs."""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from honcho.environ import parse_procfile
from jsonschema import Draft7Validator, ValidationError
from jsonschema.validators import validator_for
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from tests.support.databases import ROOT, SETTINGS
from tests.support.flags import flags, web_command
from tests.support.wheels import fetched

DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
KUBERNETES = {
    found["kind"]: found
    for found in yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text())
}
POD = KUBERNETES["Deployment"]["spec"]["template"]["spec"]
PROCFILE = parse_procfile((ROOT / "Procfile").read_text()).processes
RELEASE = PROCFILE["release"].split()
WEB = [PROCFILE["web"].removeprefix("exec ")]
USER = 10001


def official(wheel: str, file: str) -> Any:
    """A JSON file in one of the wheels that carry official schemas."""
    (path,) = fetched(ROOT / "tests/support/schemas.txt").glob(f"{wheel}-*.whl")
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(file))


@pytest.fixture(scope="module")
def kubernetes() -> Registry[Any]:
    """What the schemas of Kubernetes refer to."""
    definitions = official("kubernetes_validate", f"{KUBERNETES_SCHEMAS}/_definitions.json")
    resource = Resource.from_contents(definitions, default_specification=DRAFT7)
    registry: Registry[Any] = Registry().with_resource("/api/_definitions.json", resource)
    return registry


KUBERNETES_SCHEMAS = "kubernetes_validate/kubernetes-json-schema/v1.37.0-local-strict"


def check_kubernetes(found: dict[str, Any], registry: Registry[Any]) -> None:
    """ValidationError if an object has unknown fields, or values of another kind."""
    group = found["apiVersion"].replace(".k8s.io", "").replace("/", "-")
    name = f"{KUBERNETES_SCHEMAS}/{found['kind'].lower()}-{group}.json"
    Draft7Validator(official("kubernetes_validate", name), registry=registry).validate(found)


def test_compose_fits_its_schema() -> None:
    """compose.yaml fits the schema of the Compose specification, and a mistake doesn't."""
    name = "check_jsonschema/builtin_schemas/vendor/compose-spec.json"
    schema = official("check_jsonschema", name)
    validator = validator_for(schema)(schema)
    validator.validate(COMPOSE)
    web = COMPOSE["services"]["web"]
    assert not validator.is_valid(COMPOSE | {"services": {"web": web | {"port": []}}})


def test_compose_migrates_and_serves(tmp_path: Path) -> None:
    """The service starts after the migration, which starts when PostgreSQL takes connections."""
    database, migrate, web = (COMPOSE["services"][name] for name in ("database", "migrate", "web"))
    assert (migrate["command"], web["command"]) == (RELEASE, WEB)
    for one in (migrate, web):
        assert (ROOT / "deploy" / one["build"]["context"]).resolve() == ROOT
        assert (ROOT / one["build"]["dockerfile"]).exists()
        assert (one["read_only"], one["cap_drop"]) == (True, ["ALL"])
        assert set(one["environment"]) <= SETTINGS | {"PORT"}
        assert one["depends_on"]["database"] == {"condition": "service_healthy"}
    assert web["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    # Not the server without TCP that makes the data.
    assert "--host=127.0.0.1" in database["healthcheck"]["test"]
    assert [volume.split(":")[0] for volume in database["volumes"]] == list(COMPOSE["volumes"])
    grace = flags(web_command(), tmp_path)["timeout_graceful_shutdown"]
    assert int(web["stop_grace_period"].removesuffix("s")) > grace


@pytest.mark.parametrize("kind", KUBERNETES)
def test_kubernetes_fits_its_schemas(kind: str, kubernetes: Registry[Any]) -> None:
    """Each object fits the official schema, and an unknown field doesn't."""
    check_kubernetes(KUBERNETES[kind], kubernetes)
    unknown = KUBERNETES[kind]["spec"] | {"unknown": 1}
    with pytest.raises(ValidationError, match="unknown"):
        check_kubernetes(KUBERNETES[kind] | {"spec": unknown}, kubernetes)


def containers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each container with its pod."""
    for kind in ("Job", "Deployment"):
        pod = KUBERNETES[kind]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        yield pod, container


def test_kubernetes_gives_no_rights() -> None:
    """Both pods are as restricted as the image allows, and run the same one."""
    for pod, container in containers():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == USER
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod["automountServiceAccountToken"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {one["name"] for one in container["env"]} <= SETTINGS | {"PORT"}
    assert len({container["image"] for _, container in containers()}) == 1
    assert f"\nUSER {USER}:{USER}\n" in DOCKERFILE


def test_kubernetes_deploys_without_a_gap(tmp_path: Path) -> None:
    """Old pods stay until new ones are ready, and have the time for draining and their grace."""
    spec = KUBERNETES["Deployment"]["spec"]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert KUBERNETES["PodDisruptionBudget"]["spec"]["minAvailable"] < spec["replicas"]
    (_, migrate), (_, web) = containers()
    assert migrate["command"] == RELEASE
    assert web["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    for probe in ("startupProbe", "livenessProbe"):
        assert web[probe]["httpGet"]["path"] == "/health/live"
    drain = {one["name"]: one.get("value") for one in web["env"]}["DRAIN_SECONDS"]
    grace = flags(web_command(), tmp_path)["timeout_graceful_shutdown"]
    assert POD["terminationGracePeriodSeconds"] > float(drain or 0) + grace


def test_kubernetes_selects_its_pods() -> None:
    """The Service and the budget mean the pods of the Deployment, and not those of the Job."""
    labels = KUBERNETES["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert KUBERNETES[kind]["spec"]["selector"]["matchLabels"] == labels
    assert KUBERNETES["Service"]["spec"]["selector"] == labels
    assert KUBERNETES["Job"]["spec"]["template"]["metadata"]["labels"] != labels
    (port,) = KUBERNETES["Service"]["spec"]["ports"]
    ((_, web),) = [one for one in containers() if "ports" in one[1]]
    assert port["targetPort"] == web["ports"][0]["name"]


def test_the_image_has_the_python_of_the_platforms() -> None:
    """The base of the Dockerfile is the version that .python-version names."""
    version = (ROOT / ".python-version").read_text().strip()
    found = re.search(r"^ARG BASE=\S+:(\S+)-slim$", DOCKERFILE, re.MULTILINE)
    assert found is not None
    assert found[1] == version
    assert f"CMD {json.dumps(WEB)}" in DOCKERFILE
