"""The commands of README and docs/api.md have the output that these pages show."""

import re
import subprocess

import httpx2
import pytest

from tests.support.databases import ROOT, environment

PAGES = ["README.md", "docs/api.md"]
COMMAND = r"^[ \t>]*\$ "


def examples(page: str) -> list[tuple[str, str]]:
    """The commands behind `$` in the console blocks, in order, each with its output."""
    blocks = re.findall(r"^```console\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    found = []
    for block in blocks:
        before, *parts = re.split(r"^\$ ", block, flags=re.MULTILINE)
        assert before == "", f"the output of no command: {before}"
        for part in parts:
            # A backslash at its end goes on with a command.
            command = re.match(r"(?:.*\\\n)*.*\n", part)
            assert command is not None
            found.append((command[0].strip(), part[command.end() :].strip("\n")))
    return found


def test_commands_are_found() -> None:
    """A command has all of its lines, and its output ends with the next command or the block."""
    page = "```console\n$ a \\\n  b\n1\n\n2\n$ c | d\n```\n$ e\n```console\n$ f\nf\n```\n"
    assert examples(page) == [("a \\\n  b", "1\n\n2"), ("c | d", ""), ("f", "f")]


def test_other_pages_have_no_examples() -> None:
    """No other page in docs/ has a command whose output nobody checks."""
    found = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "README.md", *(ROOT / "docs").glob("**/*.md"))
        if re.search(COMMAND, file.read_text(), re.MULTILINE)
    }
    assert found == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_work(service: httpx2.Client, page: str) -> None:
    """On a fresh database every command of a page prints the text below it."""
    text = (ROOT / page).read_text()
    found = examples(text)
    assert len(found) == len(re.findall(COMMAND, text, re.MULTILINE)) > 0
    for command, output in found:
        assert "localhost:8000" in command
        result = subprocess.run(
            command.replace("localhost:8000", f"{service.base_url.host}:{service.base_url.port}"),
            shell=True,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert result.stdout.strip("\n") == output, command
        assert (result.returncode, result.stderr) == (0, ""), command


def test_the_first_screen_is_one() -> None:
    """README says what the service is in 30 lines, with an operation as the code has it."""
    screen = (ROOT / "README.md").read_text().partition("\n## ")[0]
    assert len(screen.splitlines()) <= 30
    (operation,) = re.findall(r"^```python\n(.*?)^```$", screen, re.DOTALL | re.MULTILINE)
    assert operation.strip() in (ROOT / "service/notes/resource.py").read_text()
