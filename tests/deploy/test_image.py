"""The image of deploy/Dockerfile, built and run."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.collector import Collector, running_collector
from tests.support.images import Image, built
from tests.support.notes import known
from tests.support.servers import free_port
from tests.support.waiting import poll

REQUIREMENTS = {"requirements.txt", "requirements-otel.txt"}
NOTE = {"text": "Deployed", "completed": False}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """An image of this clone."""
    with built(tmp_path_factory.mktemp("image")) as made:
        yield made


@pytest.fixture
def data(tmp_path: Path, image: Image) -> Path:
    """A folder in which the image's user may write."""
    folder = tmp_path / "data"
    folder.mkdir()
    os.chown(folder, int(image.config["User"].split(":")[0]), -1)
    return folder


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as server:
        yield server


def test_the_image_migrates_serves_and_stops(
    image: Image, data: Path, tmp_path: Path, collector: Collector
) -> None:
    """As process 1, without rights and on a read-only root, it does what a deploy asks for.

    It has what traces need.
    """
    log = tmp_path / "log"
    port = free_port()
    variables = {
        "DATABASE_URL": "sqlite:////mnt/notes.db",
        "PORT": str(port),
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
    }
    migrated = image.run("alembic", "upgrade", "head", data=data, **variables)
    assert migrated.returncode == 0, migrated.stderr
    with image.running(data, log, **variables) as process:
        poll(lambda: "startup complete" in log.read_text(), log.read_text)
        kind, *check = image.config["Healthcheck"]["Test"]
        healthy = image.run(*check, data=data, **variables)
        assert (kind, healthy.returncode, healthy.stdout) == ("CMD", 0, "ready\n")
        posted = httpx2.post(f"http://127.0.0.1:{port}/notes/", json=NOTE)
        assert known(posted.json()) == {"id": 1, **NOTE}
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert re.search(r"^NSpid:\t\d+\t1$", status, re.MULTILINE)
        assert re.search(r"^Uid:\t10001\t10001\t10001\t", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert "Application shutdown complete" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert "POST /notes/" in {span.name for span in collector.spans()}


def test_what_is_in_the_image(image: Image) -> None:
    """It has the service and its requirements: no tests, no tools, and nothing of a checkout."""
    app = image.root / "app"
    files = {path.name for path in app.iterdir()}
    assert files == {"alembic", "alembic.ini", *REQUIREMENTS, "scripts", "service"}
    assert [path.name for path in (app / "scripts").iterdir()] == ["web"]
    assert list(app.glob("service/__pycache__/app.*.pyc"))
    assert not list(image.root.glob("venv/lib/*/site-packages/pip"))
    owners = {path.lstat().st_uid for path in [app, *app.rglob("*")]}
    assert owners == {0}
    labels = image.config["Labels"]
    assert {"title", "description", "version", "revision"} <= {
        name.removeprefix("org.opencontainers.image.") for name in labels
    }
