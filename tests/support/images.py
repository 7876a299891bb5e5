"""Images of the service, built and run without a registry and without a daemon.

Debian's buildah builds them on a base of this machine's Python. It mounts the files of the base,
which would be most of what it stores. Images are run as a container runtime runs them: in their own
root, which is read-only, as process 1, and without rights.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from tests.support.databases import ROOT
from tests.support.wheels import fetched

# What a slim base has, and Python. The folder of its library is /usr/local/lib/python3.13 or so.
PROGRAMS = ("/bin/sh", "/bin/chmod", "/usr/bin/find")
# Wheels expect these of the base.
LIBRARIES = (
    *("libstdc++.so.6", "libgcc_s.so.1"),
    *("libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1"),
)
LEFT_OUT = (
    *("test", "config-*", "idlelib", "tkinter", "turtledemo", "ensurepip", "pydoc*", "*.opt-?.pyc"),
    *("site-packages", "dist-packages"),
)
MOUNTED = "/mnt"
# Python finds itself there, and pip the wheels.
BASE = ("PATH=/usr/local/bin:/usr/bin", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/wheels /more")
# Mounts what a runtime mounts, makes the rest read-only, and becomes the command of the image.
RUN = f"""
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount --bind /dev "$1/dev"
mount --bind "$2" "$1{MOUNTED}"
mount --bind "$5" "$1/usr"
mount -o remount,bind,ro "$1/usr"
mount -o remount,bind,ro "$1"
exec setpriv --no-new-privs --bounding-set=-all,+sys_chroot,+setuid,+setgid \\
    chroot --userspec="$3" --groups= "$1" /bin/sh -c 'cd "$0" && exec "$@"' "$4" "${{@:6}}"
"""


UNSHARE = ("unshare", "--fork", "--pid", "--mount")


def _skip_without_buildah() -> None:
    """Skips the test where images can't be built and run. In CI that is a failure."""
    if shutil.which("buildah") is None or subprocess.run([*UNSHARE, "true"]).returncode != 0:
        assert "CI" not in os.environ, "nothing is skipped in CI"
        pytest.skip("Debian's buildah is needed, and the rights of root")


class Image(NamedTuple):
    """A built image: its files, those of /usr, which stand alone, and what it says of itself."""

    root: Path
    usr: Path
    config: dict[str, Any]

    def command(self, arguments: Sequence[str], data: Path) -> list[str]:
        """Runs arguments in the image. It may write only to the folder `data`, at /mnt."""
        user, folder = self.config["User"], self.config["WorkingDir"]
        places = [str(self.root), str(data), user, folder, str(self.usr)]
        return [*UNSHARE, "bash", "-ec", RUN, "run", *places, *arguments]

    def environment(self, variables: dict[str, str]) -> dict[str, str]:
        """What the image sets, the variables, and nothing of this machine."""
        given = dict(entry.split("=", 1) for entry in self.config["Env"])
        # The programs that start it are found by the same PATH.
        given["PATH"] += ":/usr/sbin:/usr/bin:/sbin:/bin"
        return {"HOME": "/"} | given | variables

    def run(
        self, *arguments: str, data: Path, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in the image until it ends."""
        return subprocess.run(
            self.command(arguments, data),
            env=self.environment(variables),
            capture_output=True,
            text=True,
        )

    @contextmanager
    def running(self, data: Path, log: Path, **variables: str) -> Iterator[psutil.Process]:
        """Runs the image's own command until the block ends. Yields its process 1."""
        with log.open("wb") as output:
            outer = subprocess.Popen(
                self.command(self.config["Cmd"], data),
                env=self.environment(variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            while not (children := psutil.Process(outer.pid).children()):
                assert outer.poll() is None, log.read_text()
            yield children[0]
        finally:
            # `unshare` ignores signals. With its process 1 ends everything in the image.
            if outer.poll() is None:
                for child in psutil.Process(outer.pid).children():
                    child.kill()
            outer.wait(60)


@contextmanager
def built(folder: Path) -> Iterator[Image]:
    """Builds deploy/Dockerfile on this machine's Python. Skips the test if that isn't possible."""
    _skip_without_buildah()
    store = ["--root", f"{folder}/store", "--runroot", f"{folder}/run"]

    def buildah(*arguments: str | Path) -> str:
        done = subprocess.run(
            ["buildah", *store, *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    # It needs no copies of the layers, but not every file system can be below it.
    overlay = ["--storage-driver", "overlay"]
    is_possible = subprocess.run(["buildah", *store, *overlay, "images"], capture_output=True)
    store += ["--storage-driver", "vfs"] if is_possible.returncode else overlay
    buildah("from", "--name", "making", "scratch")
    make_root(Path(buildah("mount", "making")))
    usr = folder / "usr"
    make_usr(usr)
    buildah("config", *(f"--env={variable}" for variable in BASE), "making")
    buildah("commit", "--rm", "--quiet", "making", "base")
    mounted = (
        *("-v", f"{usr}:/usr:ro"),
        *("-v", f"{fetched(ROOT / 'requirements.txt')}:/wheels:ro"),
        *("-v", f"{fetched(ROOT / 'requirements-otel.txt')}:/more:ro"),
    )
    options = ("--isolation", "chroot", "--pull-never", "--format", "docker", "--quiet")
    arguments = ("--build-arg", "BASE=localhost/base", *mounted)
    buildah("build", *options, *arguments, "-t", "notes", "-f", "deploy/Dockerfile", ".")
    about = json.loads(buildah("inspect", "--type", "image", "localhost/notes"))
    buildah("from", "--pull-never", "--name", "made", "localhost/notes")
    try:
        yield Image(Path(buildah("mount", "made")), usr, about["Docker"]["config"])
    finally:
        buildah("umount", "made")


def make_root(root: Path) -> None:
    """Makes the folders of a base, and links into /usr."""
    for name in ("proc", "dev", "tmp", "usr", MOUNTED[1:]):
        (root / name).mkdir()
    for name, target in (("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib")):
        (root / name).symlink_to(target)


def make_usr(usr: Path) -> None:
    """Makes /usr of a base: this machine's Python with pip, a shell, and their libraries."""
    version = f"python{sysconfig.get_python_version()}"
    library = usr / "local/lib" / version
    executables = usr / "local/bin"
    libraries = usr / "lib"
    for path in (executables, libraries, library.parent, usr / "bin"):
        path.mkdir(parents=True, exist_ok=True)

    python = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    shutil.copy(python, executables / version)
    (executables / "python").symlink_to(version)
    stdlib = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(stdlib, library, ignore=shutil.ignore_patterns(*LEFT_OUT))
    pip = find_spec("pip")
    assert pip is not None
    assert pip.origin is not None
    shutil.copytree(Path(pip.origin).parent, library / "pip")
    for program in PROGRAMS:
        shutil.copy(program, usr / "bin")
    linked = libraries_of(python, *library.glob("lib-dynload/*.so"), *map(Path, PROGRAMS))
    for path in {*linked, *map(known_library, LIBRARIES)}:
        shutil.copy(path, libraries / path.name)


def libraries_of(*files: Path) -> set[Path]:
    """The shared libraries that programs and libraries load."""
    listed = subprocess.run(["ldd", *files], capture_output=True, text=True).stdout
    return {Path(path) for path in re.findall(r"(/\S+\.so\S*) \(0x", listed)}


@cache
def known_library(name: str) -> Path:
    """Where the system has a library."""
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout
    found = re.search(rf"^\s*{re.escape(name)} .*=> (\S+)$", known, re.MULTILINE)
    assert found is not None
    return Path(found[1])
