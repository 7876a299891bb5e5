"""docs/deploying.md and app.json: what platforms are told works on the files of a clone."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from honcho.environ import parse_procfile
from openapi_schema_validator import OAS31Validator

from tests.deploy.test_scripts import copy_repository
from tests.support.databases import ROOT, SETTINGS, NewDatabase, environment
from tests.support.flags import flags
from tests.support.notes import known
from tests.support.servers import free_port, process

PAGE = (ROOT / "docs/deploying.md").read_text()
NOTE = {"text": "Deployed", "completed": False}


def block(language: str) -> str:
    """The only code block of the page in a language."""
    (found,) = re.findall(f"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


# What the first column of the table wants to be done or set, by its title.
TABLE = re.findall(r"^\| ([^:|`]+): `([^`]+)` \|", PAGE, re.MULTILINE)
VALUES = dict(TABLE)
CHECKS = [value for title, value in TABLE if title == "health check"]
APP = json.loads((ROOT / "app.json").read_text())
FLY = tomllib.loads(block("toml"))
DOCKERFILE = [line.split(maxsplit=1) for line in block("dockerfile").splitlines()]


def copy_image(folder: Path) -> Path:
    """Copies what the Dockerfile copies."""
    for instruction, arguments in DOCKERFILE:
        if instruction == "COPY":
            *sources, target = arguments.split()
            for name in sources:
                if target == "./":
                    folder.mkdir(exist_ok=True)
                    shutil.copy(ROOT / name, folder / name)
                else:
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / name, folder / target, ignore=ignored)
    return folder


@pytest.mark.parametrize("copy", [copy_repository, copy_image])
def test_the_commands_of_the_table(
    new_empty_database: NewDatabase, tmp_path: Path, copy: Callable[[Path], Path]
) -> None:
    """On an empty database, the commands migrate and serve, and the health checks succeed."""
    folder = copy(tmp_path / "copy")
    port = free_port()
    name, _, networks = VALUES["routers"].partition("=")
    assert name == "FORWARDED_ALLOW_IPS"
    url = new_empty_database("postgresql")
    variables = {"DATABASE_URL": url, "PORT": str(port), name: networks}
    subprocess.run(VALUES["release"].split(), cwd=folder, env=environment(**variables), check=True)
    with (
        process([VALUES["start"]], port, tmp_path / "log", variables, cwd=folder),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        assert CHECKS == ["/health/ready", "/health/live"]
        for path in CHECKS:
            assert client.get(path).status_code == 200
        assert known(client.post("/notes/", json=NOTE).json()) == {"id": 1, **NOTE}
        redirect = client.get("/notes", headers={"x-forwarded-proto": "https"})
        assert redirect.headers["location"].startswith("https://")


def test_the_table_and_the_procfile_agree() -> None:
    """Heroku and Dokku do what the other platforms are told."""
    processes = parse_procfile((ROOT / "Procfile").read_text()).processes
    assert processes == {"release": VALUES["release"], "web": f"exec {VALUES['start']}"}


def test_the_files_for_fly_agree(tmp_path: Path) -> None:
    """The Dockerfile and fly.toml do what the table says, and leave time for the shutdown."""
    instructions = dict(DOCKERFILE)
    version = (ROOT / ".python-version").read_text().strip()
    assert instructions["FROM"] == f"python:{version}-slim"
    assert instructions["RUN"].replace(" --no-cache-dir", "") == VALUES["build"]
    assert json.loads(instructions["CMD"]) == [VALUES["start"]]
    assert FLY["deploy"]["release_command"] == VALUES["release"]
    (check,) = FLY["http_service"]["checks"]
    assert check["path"] in CHECKS
    assert FLY["kill_signal"] == "SIGTERM"
    given = flags((ROOT / VALUES["start"]).read_text(), tmp_path, **FLY["env"])
    assert given["port"] == FLY["http_service"]["internal_port"]
    assert f"FORWARDED_ALLOW_IPS={given['forwarded_allow_ips']}" == VALUES["routers"]
    assert FLY["kill_timeout"] > given["timeout_graceful_shutdown"]


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
