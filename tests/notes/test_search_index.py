"""Pages of many notes touch few of them, and searches answer the same on every server."""

import json
import locale
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import asyncpg
import httpx2
import pytest

from service.tables import notes
from tests.support import databases
from tests.support.databases import KINDS
from tests.support.debian import Cluster, find, running_cluster
from tests.support.migrating import NEWEST, WAITS, backends, migrate_to, migrating
from tests.support.notes import MORE
from tests.support.servers import serving
from tests.support.waiting import poll

COUNT = 200_000
# How many rows any step of a plan may touch, and how many blocks of 8 kB all of it. The table and
# the index for searches have 1,800 blocks.
FEW_ROWS = 1_000
FEW_BLOCKS = 500

INDEXES = {
    "notes_completed": "notes (completed, id)",
    "notes_search": 'notes USING gin (coalesce(folded, lower(text COLLATE "C")) gin_trgm_ops)',
    "notes_large": "notes ((id + 0)) WHERE octet_length(text) > 1998",
}
# Those of fields that the example doesn't have.
LATER = {str(index.name) for index in notes.indexes if not {*MORE}.isdisjoint(index.columns.keys())}

TEXT = """CASE
    WHEN n % 50000 = 0 THEN 'A Needle in note ' || n
    WHEN n % 50000 = 1 THEN 'Еще одна ИГОЛКА ' || n
    ELSE 'note ' || n
END"""


@pytest.fixture(scope="module")
def debian() -> Iterator[Cluster]:
    """Debian's PostgreSQL, which has pg_trgm."""
    with running_cluster() as cluster:
        yield cluster


def create(cluster: Cluster, options: str = "") -> str:
    """Creates an empty database and gives its URL."""
    name = f"test_{secrets.token_hex(6)}"
    databases.execute(cluster.url, f"CREATE DATABASE {name} TEMPLATE template0 {options}")
    return urlsplit(cluster.url)._replace(path=f"/{name}").geturl()


def indexes(database_url: str) -> dict[str, str]:
    """The definitions of the indexes of the table of notes by name, except those of owners."""
    found = databases.execute(
        database_url,
        "SELECT coalesce(json_object_agg(indexname, indexdef), '{}')::text"
        " FROM pg_indexes WHERE tablename = 'notes' AND indexname NOT LIKE 'notes_owner%'",
    )
    definitions: dict[str, str] = json.loads(found)
    return {name: definitions[name] for name in definitions if name not in LATER}


def upgrade(database_url: str, version: str = "head") -> str:
    """Migrates, and gives Alembic's output. AssertionError if it fails."""
    result = databases.alembic(database_url, "upgrade", version)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


# Plans


class Many(NamedTuple):
    """The service on many notes, and the log where PostgreSQL explains its statements."""

    client: httpx2.Client
    database_url: str
    log: Path

    def plans(self, url: str, times: int = 1) -> tuple[httpx2.Response, list[dict[str, Any]]]:
        """Asks the service, and gives its answer and the plans of its statements."""
        before = self.log.stat().st_size
        for _ in range(times):
            answer = self.client.get(url)
            assert answer.status_code == 200
        # A statement's plan is logged before the service hears of its end.
        with self.log.open() as log:
            log.seek(before)
            found = re.findall(r"plan:\n((?:\t.*\n)+)", log.read())
        plans = [json.loads(plan.replace("\n\t", "\n")) for plan in found]
        return answer, [plan["Plan"] for plan in plans if "FROM notes" in plan["Query Text"]]


@pytest.fixture(scope="module")
def many(debian: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Many]:
    """The service on a database with many notes, which are older than the indexes."""
    url = create(debian)
    upgrade(url, NEWEST)
    databases.execute(
        url,
        *(f"DROP INDEX {name}" for name in INDEXES),
        "DROP TABLE IF EXISTS tokens",
        "DROP TABLE IF EXISTS users",
        "INSERT INTO notes (text, completed)"
        f" SELECT {TEXT}, n % 1000 = 0 FROM generate_series(1, {COUNT}) n",
    )
    # An earlier version's notes would be written anew, one by one, for the larger ids.
    assert databases.alembic(url, "stamp", "0002").returncode == 0
    upgrade(url)
    name = urlsplit(url).path[1:]
    options = {
        "session_preload_libraries": "auto_explain",
        "auto_explain.log_min_duration": "0",
        "auto_explain.log_analyze": "on",
        "auto_explain.log_buffers": "on",
        "auto_explain.log_timing": "off",
        "auto_explain.log_format": "json",
    }
    databases.execute(
        url,
        "VACUUM ANALYZE notes",
        *(f"ALTER DATABASE {name} SET {option} = '{options[option]}'" for option in options),
    )
    log = tmp_path_factory.mktemp("many") / "service.log"
    # All statements go through one connection, so that PostgreSQL may reuse plans as it likes.
    with serving(url, log, DATABASE_POOL_MAX="1") as http:
        yield Many(http, url, debian.log)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def touched(node: dict[str, Any]) -> float:
    """How many rows a step of a plan has seen."""
    rows = sum(value for name, value in node.items() if name.startswith("Rows Removed"))
    return float((node["Actual Rows"] + rows) * node["Actual Loops"])


def assert_cheap(plan: dict[str, Any]) -> None:
    for node in nodes(plan):
        assert "Seq Scan" not in node["Node Type"], json.dumps(plan, indent=1)
        assert touched(node) <= FEW_ROWS, json.dumps(plan, indent=1)
    blocks = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    assert blocks <= FEW_BLOCKS, json.dumps(plan, indent=1)


def used(plan: dict[str, Any]) -> set[str]:
    """The names of the indexes in a plan."""
    return {node["Index Name"] for node in nodes(plan) if "Index Name" in node}


NEEDLES = [50_000, 100_000, 150_000, 200_000]


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("q=needle", NEEDLES),
        ("q=NEEDLE", NEEDLES),
        ("q=eed", NEEDLES),
        ("q=a%20needle%20in%20note%201", [100_000, 150_000]),
        ("q=иголка", [1, 50_001, 100_001, 150_001]),
        ("q=note%20123456", [123_456]),
        ("q=154321", [154_321]),
        ("q=nowhere", []),
        ("q=needle&order=desc", NEEDLES[::-1]),
        ("q=needle&after=100000", NEEDLES[2:]),
        ("q=needle&completed=true", NEEDLES),
        ("q=needle&completed=false", []),
        ("q=needle&limit=2", NEEDLES[:2]),
    ],
)
def test_a_rare_text_is_found_by_the_index(many: Many, query: str, ids: list[int]) -> None:
    """A search for three letters or more reads the index and the notes that match."""
    answer, plans = many.plans(f"/notes/?{query}", times=8)
    assert [note["id"] for note in answer.json()] == ids
    assert len(plans) >= 8
    for plan in plans:
        assert "notes_search" in used(plan)
        assert_cheap(plan)


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("completed=true&limit=100", range(1_000, 101_000, 1_000)),
        ("completed=true&limit=100&after=100000", range(101_000, 201_000, 1_000)),
        ("completed=true&limit=3&order=desc", range(200_000, 197_000, -1_000)),
        ("completed=true&limit=3&order=desc&after=3000", range(2_000, 0, -1_000)),
        ("completed=false&limit=3&after=100999", range(101_001, 101_004)),
        ("completed=false&limit=3&order=desc", range(199_999, 199_996, -1)),
        ("limit=100&after=100000", range(100_001, 100_101)),
        ("limit=3&order=desc", range(200_000, 199_997, -1)),
    ],
)
def test_a_page_reads_its_notes_only(many: Many, query: str, ids: range) -> None:
    """A page reads about as many notes as it has, also if few notes are of its kind."""
    answer, plans = many.plans(f"/notes/?{query}", times=8)
    assert [note["id"] for note in answer.json()] == list(ids)
    assert len(plans) >= 8
    for plan in plans:
        assert used(plan) <= {"notes_completed", "notes_large", "notes_pkey"}
        assert_cheap(plan)


@pytest.mark.parametrize("query", ["q=note&limit=100", "q=note%20&limit=100&after=100000"])
def test_a_page_of_a_common_text_is_short(many: Many, query: str) -> None:
    """A page of a search that most notes match doesn't read them all."""
    answer, plans = many.plans(f"/notes/?{query}", times=8)
    assert len(answer.json()) == 100
    for plan in plans:
        assert_cheap(plan)


def test_a_plan_for_one_text_is_none_for_another(many: Many) -> None:
    """A search is planned for its own text, after any other searches."""
    for before, query in (("q=zz", "q=needle"), ("q=needle", "q=note&limit=100")):
        many.plans(f"/notes/?{before}", times=7)
        _, plans = many.plans(f"/notes/?{query}")
        for plan in plans:
            assert_cheap(plan)


def test_a_plan_that_reads_everything_is_noticed(many: Many) -> None:
    """Without the indexes, the assertions of this module about plans fail."""
    answer, (plan,) = many.plans("/notes/?q=ee")
    assert [note["id"] for note in answer.json()] == NEEDLES
    with pytest.raises(AssertionError):
        assert_cheap(plan)


# Migrations


def test_migrations_make_the_indexes(many: Many) -> None:
    """The migration creates pg_trgm and an index each for searches and for completed notes."""
    found = indexes(many.database_url)
    definition = re.sub(r"::(text|character varying)|[()]", "", found["notes_search"])
    assert definition.endswith('USING gin COALESCEfolded, lowertext COLLATE "C" gin_trgm_ops')
    assert found["notes_completed"].endswith("USING btree (completed, id)")
    extension = "SELECT count(*) FROM pg_extension WHERE extname = 'pg_trgm'"
    assert databases.execute(many.database_url, extension) == 1


def test_migrations_go_up_and_down_with_the_index(debian: Cluster) -> None:
    """With pg_trgm too, the migrated tables are those of the code, and downgrade works."""
    url = create(debian)
    for command in ("upgrade head", "check", "downgrade base"):
        result = databases.alembic(url, *command.split())
        assert result.returncode == 0, result.stdout + result.stderr
    assert indexes(url) == {}


def test_printed_migrations_can_be_run(debian: Cluster) -> None:
    """The output of `--sql` makes the same indexes when psql runs it."""
    url = create(debian)
    printed = databases.alembic(url, "upgrade", "head", "--sql")
    assert printed.returncode == 0, printed.stderr
    result = subprocess.run(
        [debian.binaries / "psql", "--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", url],
        input=printed.stdout,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert {"notes_search", "notes_completed"} <= set(indexes(url))


def search_by_role(debian: Cluster, log: Path, *preparations: str) -> tuple[str, set[str]]:
    """Migrates as a role that may make tables but no extensions, and searches.

    Gives what the migration prints and the names of the indexes.
    """
    url = create(debian)
    role = f"role_{secrets.token_hex(6)}"
    databases.execute(
        url,
        f"CREATE ROLE {role} LOGIN",
        f"GRANT CREATE ON SCHEMA public TO {role}",
        *preparations,
    )
    parts = urlsplit(url)
    url = parts._replace(netloc=parts.netloc.replace("postgres@", f"{role}@")).geturl()
    printed = upgrade(url)
    with serving(url, log) as http:
        assert_found(http)
    return printed, set(indexes(url))


def assert_found(http: httpx2.Client) -> None:
    """Stores a note. AssertionError unless it is found by its text."""
    note = {"text": "A Needle", "completed": False}
    assert http.post("/notes/", json=note).status_code == 200
    assert [found["text"] for found in http.get("/notes/?q=needle").json()] == ["A Needle"]


def test_a_role_without_the_right_migrates(debian: Cluster, tmp_path: Path) -> None:
    """Without the right to create pg_trgm the migration succeeds with a note, and searches work."""
    printed, names = search_by_role(debian, tmp_path / "log")
    assert "pg_trgm" in printed
    assert "missing" in printed
    assert names == {"notes_pkey", "notes_completed", "notes_large"}


def test_an_extension_that_is_there_is_used(debian: Cluster, tmp_path: Path) -> None:
    """If pg_trgm is there already, the migration needs no right to create it."""
    printed, names = search_by_role(debian, tmp_path / "log", "CREATE EXTENSION pg_trgm")
    assert "pg_trgm" not in printed
    assert names == {"notes_pkey", "notes_completed", "notes_large", "notes_search"}


def test_a_server_without_the_extension_migrates(
    new_empty_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """On a server without pg_trgm the migration succeeds with a note, and searches work."""
    url = new_empty_database("postgresql")
    available = "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_trgm'"
    printed = upgrade(url)
    assert ("pg_trgm is missing" in printed) == (not databases.execute(url, available))
    with serving(url, tmp_path / "log") as http:
        assert_found(http)


def valid(database_url: str) -> set[str]:
    """The names of the indexes of the table of notes that can be used, except those of owners."""
    query = "SELECT string_agg(indexrelid::regclass::text, ',') FROM pg_index"
    found = databases.execute(
        database_url,
        f"{query} WHERE indrelid = 'notes'::regclass AND indisvalid"
        " AND indexrelid::regclass::text NOT LIKE 'notes_owner%'",
    )
    return set(found.split(",")) - LATER


@pytest.mark.parametrize("version", ["0002", "0004"])
def test_an_index_that_was_broken_off_is_made_anew(debian: Cluster, version: str) -> None:
    """The next run, or a later version's, makes an invalid index anew."""
    url = create(debian)
    assert databases.alembic(url, "upgrade", version).returncode == 0
    databases.execute(url, "CREATE EXTENSION IF NOT EXISTS pg_trgm")
    for name, definition in INDEXES.items():
        databases.execute(url, f"DROP INDEX IF EXISTS {name}")
        with (
            databases.holding(url, "LOCK TABLE notes IN ROW EXCLUSIVE MODE"),
            pytest.raises(asyncpg.QueryCanceledError),
        ):
            databases.execute(
                url,
                "SET statement_timeout = 500",
                f"CREATE INDEX CONCURRENTLY {name} ON {definition}",
            )
    assert valid(url) == {"notes_pkey"}
    upgrade(url)
    assert valid(url) == {"notes_pkey", *INDEXES}
    assert set(indexes(url)) == valid(url)


@pytest.mark.parametrize("name", ["notes_completed", "notes_search"])
def test_an_index_is_made_while_others_write(debian: Cluster, tmp_path: Path, name: str) -> None:
    """While the making of an index waits for a long write, others can write."""
    url = create(debian)
    migrate_to(url, "0002")
    databases.execute(
        url,
        "CREATE EXTENSION pg_trgm",
        "INSERT INTO notes (text, completed) VALUES ('old', false)",
        *(f"CREATE INDEX {other} ON {INDEXES[other]}" for other in INDEXES if other != name),
    )
    with (
        serving(url, tmp_path / "log") as http,
        databases.holding(url, "LOCK TABLE notes IN ROW EXCLUSIVE MODE"),
        migrating(url, "upgrade", "0003"),
    ):
        poll(
            lambda: bool(
                backends(url, f"{WAITS['postgresql']} AND query ~ 'CREATE INDEX .*{name}'")
            )
        )
        assert http.patch("/notes/1", json={"text": "new"}).status_code == 200
        assert http.post("/notes/", json={"text": "a", "completed": True}).status_code == 200


def test_other_trouble_is_told_as_such(debian: Cluster) -> None:
    """Any other error ends the run. The next run completes it."""
    url = create(debian)
    assert databases.alembic(url, "upgrade", "0002").returncode == 0
    databases.execute(
        url,
        f"CREATE INDEX notes_completed ON {INDEXES['notes_completed']}",
        f"ALTER DATABASE {urlsplit(url).path[1:]} SET statement_timeout = 1000",
    )
    with databases.holding(url, "LOCK TABLE notes IN ROW EXCLUSIVE MODE"):
        result = databases.alembic(url, "upgrade", "head")
    assert result.returncode != 0
    assert "missing" not in result.stderr
    assert result.stderr.splitlines()[-1].endswith("canceling statement due to statement timeout")
    assert valid(url) == {"notes_pkey", "notes_completed"}
    upgrade(url)
    assert valid(url) == {"notes_pkey", *INDEXES}


def test_an_extension_in_another_schema_is_used(debian: Cluster, tmp_path: Path) -> None:
    """The index is made with pg_trgm from a schema outside the search path."""
    printed, names = search_by_role(
        debian,
        tmp_path / "log",
        'CREATE SCHEMA "Aside"',
        'GRANT USAGE ON SCHEMA "Aside" TO PUBLIC',
        'CREATE EXTENSION pg_trgm SCHEMA "Aside"',
    )
    assert "pg_trgm" not in printed
    assert names == {"notes_pkey", "notes_completed", "notes_large", "notes_search"}


# Letters


TEXTS = [
    *("I", "i", "İ", "ı", "TITLE", "title", "İstanbul", "ISPARTA", "ısı", "Iğdır"),
    *("STRASSE", "straße", "STRAẞE", "Maße und MASSE", "ﬁne", "FINE"),
    *("ПРИВЕТ, мир", "привет, МИР", "Ёлка", "ёлка", "ΣΊΣΥΦΟΣ", "σίσυφος", "Σίσυφος"),
    *("É", "é", "e\u0301", "ÅNGSTRÖM", "ångström", "K", "k", "ᏣᎳᎩ", "ꮳꮃꭹ", "𐐀𐐁𐐂", "𐐨𐐩𐐪"),
    *("100%", "100 %", "a_b", "a-b", "a\\b", "a*b", "", " ", "日本語", "🙂 smile", "a\nb", "'q'"),
]
QUERIES = [
    *("i", "I", "İ", "ı", "title", "TITLE", "tıtle", "istanbul", "i̇stanbul", "isparta", "ısp"),
    *("straße", "STRASSE", "strasse", "asse", "ß", "ss", "ﬁ", "fine", "FIN"),
    *("привет", "ПРИВЕТ", "мир", "МИР", "ёлка", "ЁЛКА", "σίσυφος", "ΣΊΣΥΦΟΣ", "φος", "ς", "σ"),
    *("é", "É", "e\u0301", "ångström", "ÅNGSTRÖM", "Å", "K", "k", "ᏣᎳᎩ", "ꮳꮃꭹ", "𐐀𐐁𐐂", "𐐨𐐩𐐪"),
    *("%", "_", "\\", "*", "100%", "100 %", "a_b", "a\\b", "a*b", "日本", "🙂", "'", "\n", " "),
]

DEBIAN = {
    "C": "LOCALE 'C' ENCODING 'UTF8'",
    "C.UTF-8": "LOCALE 'C.UTF-8' ENCODING 'UTF8'",
    "ICU tr-TR": "LOCALE 'C.UTF-8' ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'tr-TR'",
}
before = locale.setlocale(locale.LC_CTYPE)
with suppress(locale.Error):
    locale.setlocale(locale.LC_CTYPE, "tr_TR.UTF-8")
    DEBIAN["tr_TR.UTF-8"] = "LOCALE 'tr_TR.UTF-8' ENCODING 'UTF8'"
locale.setlocale(locale.LC_CTYPE, before)


def assert_folded(http: httpx2.Client) -> None:
    """AssertionError unless each query finds the texts that contain it in any case."""
    texts = TEXTS + [text * 2 for text in TEXTS]
    notes = [{"text": text, "completed": True} for text in texts]
    assert http.post("/notes/batch", json=notes).status_code == 200
    for q in QUERIES:
        found = http.get("/notes/", params={"q": q}).json()
        expected = [text for text in texts if q.casefold() in text.casefold()]
        assert [note["text"] for note in found] == expected, q


@pytest.mark.parametrize("options", DEBIAN.values(), ids=DEBIAN)
def test_case_is_none_of_the_locales_business(
    debian: Cluster, tmp_path: Path, options: str
) -> None:
    """Searches by the index ignore case as Unicode defines it, under any locale."""
    url = create(debian, options)
    upgrade(url)
    name = urlsplit(url).path[1:]
    # So few notes would not be searched by the index.
    databases.execute(url, f"ALTER DATABASE {name} SET enable_seqscan = off")
    with serving(url, tmp_path / "log") as http:
        assert_folded(http)
    scans = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'notes_search'"
    # PostgreSQL counts a connection's work when the connection has ended.
    poll(lambda: bool(databases.execute(url, scans)), lambda: "the index was not used")


@pytest.mark.parametrize("kind", KINDS)
def test_case_is_the_same_without_the_index(
    new_database: databases.NewDatabase, tmp_path: Path, kind: str
) -> None:
    """Searches that read every note ignore case as Unicode defines it."""
    with serving(new_database(kind), tmp_path / "log") as http:
        assert_folded(http)


# The helper


def test_nothing_is_skipped_in_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Debian's PostgreSQL its tests are skipped, and fail in CI."""
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="Debian's postgresql is needed"):
        find(tmp_path)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(AssertionError, match="nothing is skipped"):
        find(tmp_path)
