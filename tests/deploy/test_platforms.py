"""The files of platforms and docs/deploying.md: what they say works on the files of a clone."""

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from honcho.environ import parse_procfile
from openapi_schema_validator import OAS31Validator

from tests.deploy.test_scripts import copy_repository
from tests.support.databases import ROOT, SETTINGS, NewDatabase, environment
from tests.support.flags import flags
from tests.support.notes import known
from tests.support.servers import free_port, process

PAGE = (ROOT / "docs/deploying.md").read_text()
NOTE = {"text": "Deployed", "completed": False}
APP = json.loads((ROOT / "app.json").read_text())
FLY = tomllib.loads((ROOT / "fly.toml").read_text())
RAILWAY = json.loads((ROOT / "railway.json").read_text())
RENDER = yaml.safe_load((ROOT / "render.yaml").read_text())
PROCFILE = parse_procfile((ROOT / "Procfile").read_text()).processes
RELEASE = PROCFILE["release"]
WEB = PROCFILE["web"].removeprefix("exec ")
DOCKERFILE = "deploy/Dockerfile"
ROUTERS = "0.0.0.0/0,::/0"
CHECKS = ["/health/ready", "/health/live"]


def test_the_commands_of_the_files(new_empty_database: NewDatabase, tmp_path: Path) -> None:
    """On an empty database, the commands migrate and serve, and the health checks succeed."""
    folder = copy_repository(tmp_path / "copy")
    port = free_port()
    url = new_empty_database("postgresql")
    variables = {"DATABASE_URL": url, "PORT": str(port), "FORWARDED_ALLOW_IPS": ROUTERS}
    subprocess.run(RELEASE.split(), cwd=folder, env=environment(**variables), check=True)
    with (
        process([WEB], port, tmp_path / "log", variables, cwd=folder),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        for path in CHECKS:
            assert client.get(path).status_code == 200
        assert known(client.post("/notes/", json=NOTE).json()) == {"id": 1, **NOTE}
        redirect = client.get("/notes", headers={"x-forwarded-proto": "https"})
        assert redirect.headers["location"].startswith("https://")


def test_the_page_has_the_commands() -> None:
    """Without a platform, people enter what the platforms run."""
    assert f"| `{RELEASE}` | `{WEB}` |" in PAGE
    assert f"FORWARDED_ALLOW_IPS={ROUTERS}" in PAGE


def test_fly(tmp_path: Path) -> None:
    """fly.toml migrates, checks, trusts the routers, and leaves time for the shutdown."""
    assert set(FLY) == {
        *("app", "kill_signal", "kill_timeout"),
        *("build", "deploy", "env", "http_service"),
    }
    assert FLY["build"] == {"dockerfile": DOCKERFILE}
    assert FLY["deploy"] == {"release_command": RELEASE}
    (check,) = FLY["http_service"]["checks"]
    assert check["path"] in CHECKS
    assert FLY["kill_signal"] == "SIGTERM"
    given = flags((ROOT / WEB).read_text(), tmp_path, **FLY["env"])
    assert given["port"] == FLY["http_service"]["internal_port"]
    assert given["forwarded_allow_ips"] == ROUTERS
    assert FLY["kill_timeout"] > given["timeout_graceful_shutdown"]


def test_railway(tmp_path: Path) -> None:
    """railway.json migrates, checks, and leaves time for the shutdown."""
    assert set(RAILWAY) == {"$schema", "build", "deploy"}
    assert RAILWAY["build"] == {"builder": "DOCKERFILE", "dockerfilePath": DOCKERFILE}
    deploy = RAILWAY["deploy"]
    assert set(deploy) == {"preDeployCommand", "healthcheckPath", "drainingSeconds"}
    assert deploy["preDeployCommand"] == [RELEASE]
    assert deploy["healthcheckPath"] in CHECKS
    given = flags((ROOT / WEB).read_text(), tmp_path)
    assert int(deploy["drainingSeconds"]) > given["timeout_graceful_shutdown"]


def test_render(tmp_path: Path) -> None:
    """render.yaml makes a database, migrates it, checks, and leaves time for the shutdown."""
    assert set(RENDER) == {"services", "databases"}
    (database,) = RENDER["databases"]
    assert set(database) == {"name", "plan", "ipAllowList"}
    (service,) = RENDER["services"]
    variables = {one.pop("key"): one for one in service.pop("envVars")}
    url = {"name": database["name"], "property": "connectionString"}
    assert variables == {
        "DATABASE_URL": {"fromDatabase": url},
        "FORWARDED_ALLOW_IPS": {"value": ROUTERS},
    }
    assert service.pop("plan") != "free"
    assert service.pop("healthCheckPath") in CHECKS
    given = flags((ROOT / WEB).read_text(), tmp_path)
    assert service.pop("maxShutdownDelaySeconds") > given["timeout_graceful_shutdown"]
    assert service == {
        "type": "web",
        "name": "notes",
        "runtime": "docker",
        "dockerfilePath": f"./{DOCKERFILE}",
        "dockerContext": ".",
        "preDeployCommand": RELEASE,
    }


SCHEMA = OAS31Validator(json.loads((ROOT / "tests/support/app.schema.json").read_text()))


def test_app_json_fits_its_schema() -> None:
    """app.json has the keys that Heroku and Dokku document. Its variables are settings."""
    SCHEMA.validate(APP)
    assert set(APP["env"]) <= SETTINGS
    (check,) = APP["healthchecks"]["web"]
    assert check["path"] in CHECKS


@pytest.mark.parametrize(
    "wrong",
    [
        {"healthcheck": {}},
        {"healthchecks": {"web": [{"path": "health/ready"}]}},
        {"healthchecks": {"web": [{"path": "/health/ready", "interval": 2}]}},
        {"healthchecks": {"web": [{"type": "startup"}]}},
        {"env": {"ACCESS": {"default": "open"}}},
        {"env": {"access": {}}},
        {"formation": {"web": {"quantity": "1"}}},
    ],
)
def test_mistakes_do_not_fit_the_schema(wrong: dict[str, Any]) -> None:
    """Keys that no platform documents, and values of another kind, are found."""
    assert not SCHEMA.is_valid(APP | wrong)
