"""Statements are compiled at their first use. Here is each of those that are made at a start."""

import sys

import pytest

from tests.support.databases import KINDS, run
from tests.support.servers import nowhere

COMPILE_ALL = """
from importlib import import_module
from service.__main__ import GROUPS
from service.database.dialect import dialect

prepared = []
compile_later = dialect.compile_later

def prepare(*arguments):
    prepared.append(compile_later(*arguments))
    return prepared[-1]

dialect.compile_later = prepare
for module in ("service.app", *GROUPS.values()):
    import_module(module)

print([compiled() == compiled() for compiled in prepared].count(True))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_each_statement_can_be_compiled(kind: str) -> None:
    """No statement of the service or its commands has a defect that its first use would tell."""
    url = "sqlite:///nowhere.db" if kind == "sqlite" else nowhere(kind)
    found = run(sys.executable, "-c", COMPILE_ALL, DATABASE_URL=url)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > 0
