"""The alerts and the dashboard in deploy/, on a Prometheus that scrapes the service."""

import json
import math
import re
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import yaml

from tests.support import sockets
from tests.support.daemons import needs
from tests.support.databases import ROOT, NewDatabase, locked
from tests.support.prometheus import running_prometheus
from tests.support.servers import free_port, process, uvicorn
from tests.support.waiting import poll

FILE = ROOT / "deploy/alerts.yaml"
RULES: list[dict[str, Any]] = yaml.safe_load(FILE.read_text())["groups"][0]["rules"]
NAMES = {rule["alert"] for rule in RULES}
DASHBOARD = json.loads((ROOT / "deploy/grafana.json").read_text())
PANELS = DASHBOARD["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
PAGE = (ROOT / "docs/what-to-watch.md").read_text()
QUOTED = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)

NOTE = {"text": "a", "completed": True}
SEEN = 'http_request_duration_seconds_count{method="PUT"}'
TOKEN = "secret"
MOST = 10
VARIABLES = {
    "MAX_REQUESTS": str(MOST),
    "METRICS_TOKEN": TOKEN,
    "DATABASE_STATEMENT_TIMEOUT": "60",
    "DATABASE_POOL_TIMEOUT": "60",
    "REQUEST_TIMEOUT": "200",
}


def configuration(port: int, rules: Path) -> dict[str, Any]:
    """What the page puts into prometheus.yml, for a port, with the token and in a hurry."""
    found: dict[str, Any] = yaml.safe_load(QUOTED[0])
    (job,) = found["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    (authorization,) = re.findall(rf"METRICS_TOKEN={TOKEN}` the job needs `(.*)`", PAGE)
    job |= yaml.safe_load(authorization)
    hurry = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    return found | {"global": hurry, "rule_files": [str(rules)]}


def impatient(folder: Path) -> Path:
    """A file with the same rules, whose alerts fire at once."""
    rules = [{key: rule[key] for key in rule if key != "for"} for rule in RULES]
    file = folder / "alerts.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "impatient", "rules": rules}]}))
    return file


def work(client: httpx2.Client) -> None:
    """Sends a request of each kind."""
    assert client.post("/notes/", json=NOTE).status_code == 200
    assert client.put("/notes/1", json=NOTE).status_code == 200
    assert client.get("/notes/?limit=1").status_code == 200


def overload(client: httpx2.Client, database_url: str, until: Callable[[], bool]) -> None:
    """Lets writes wait for a lock until a condition holds, then as many as there are slots."""
    request = sockets.json_request("PUT", "/notes/1", json.dumps(NOTE).encode())
    writers = []

    def write() -> None:
        writers.append(stack.enter_context(sockets.connect(str(client.base_url))))
        writers[-1].sendall(request)

    with ExitStack() as stack:
        with locked(database_url):
            # Prometheus needs a slot, too.
            for _ in range(MOST - 1):
                write()
            poll(until, lambda: "nothing waits")
            refused = 0
            while refused < 30:
                write()
                refused += client.get("/notes/").status_code == 503
        for writer in writers:
            sockets.read_answer(writer)


def test_alerts_fire_and_queries_have_samples(new_database: NewDatabase, tmp_path: Path) -> None:
    """Requests fill each panel, and each alert fires in the trouble that it is for.

    Prometheus is configured as the page says.
    """
    port = free_port()
    url = new_database("sqlite")
    log = tmp_path / "log"

    def empty() -> list[str]:
        """The queries without a number."""
        return [one for one in QUERIES if not any(map(math.isfinite, prometheus.values(one)))]

    def fires(*names: str) -> bool:
        return set(names) <= prometheus.firing()

    def waits() -> bool:
        # Longer than the second of NotesSlow.
        return time.monotonic() > began + 1.5 and fires("NotesDatabaseWaits")

    def refuses() -> bool:
        overload(client, url, lambda: True)
        return fires("NotesErrors", "NotesRefused")

    with running_prometheus(tmp_path, configuration(port, impatient(tmp_path))) as prometheus:
        with (
            process(uvicorn(port), port, log, VARIABLES | {"DATABASE_URL": url}),
            httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client,
        ):
            work(client)
            # A rate is of what was there at an earlier scrape.
            poll(lambda: bool(prometheus.values(SEEN)) and not fires("NotesDown"), log.read_text)
            began = time.monotonic()
            overload(client, url, waits)
            poll(lambda: fires("NotesSlow"), prometheus.firing)
            poll(refuses, prometheus.firing)
            work(client)
            poll(lambda: not empty(), lambda: "\n".join(empty()))
        poll(lambda: fires("NotesDown"))
    assert {"NotesDatabaseWaits", "NotesErrors", "NotesRefused", "NotesSlow", "NotesDown"} == NAMES


# What a minute adds to the counts of a healthy service, by the labels of its requests.
HEALTHY = {
    'route="/notes/", status="200"': 10_000,
    'route="/notes/{note_id}", status="404"': 10_000,
    # There is trouble now and then.
    'route="/notes/", status="503"': 100,
    'route="/health/ready", status="503"': 10_000,
    'route="", status="404"': 100,
}
LABELS = 'job="notes", instance="a"'


def series(requests: dict[str, int], slow: int = 0, waiting: int = 0, up: int = 1) -> Any:
    """Half an hour of a service, as promtool's tests write it."""
    given = {f"up{{{LABELS}}}": f"{up}x30"}
    given[f"database_connections_waited_for{{{LABELS}}}"] = f"{waiting}x30"
    for labels, number in requests.items():
        name = f"http_request_duration_seconds_count{{{LABELS}, {labels}}}"
        given[name] = f"0+{number}x30"
    every = sum(requests.values())
    for bound, number in (("0.5", every - slow), ("2.5", every), ("+Inf", every)):
        name = f'http_request_duration_seconds_bucket{{{LABELS}, route="/notes/", le="{bound}"}}'
        given[name] = f"0+{number}x30"
    return [{"series": name, "values": values} for name, values in given.items()]


# The alerts that fire in each half hour.
HALF_HOURS: dict[str, tuple[Any, set[str]]] = {
    "healthy": (series(HEALTHY, slow=50, waiting=1), set()),
    "down": (series(HEALTHY, up=0), {"NotesDown"}),
    "gone": ([], {"NotesDown"}),
    "errors": (series(HEALTHY | {'route="/notes/", status="500"': 3000}), {"NotesErrors"}),
    "slow": (series(HEALTHY, slow=1000), {"NotesSlow"}),
    "waits": (series(HEALTHY, waiting=2), {"NotesDatabaseWaits"}),
    "refused": (series(HEALTHY | {'route="", status="503"': 1}), {"NotesRefused"}),
}


def expected(rule: dict[str, Any], fires: bool, half_hour: str) -> dict[str, Any]:
    """What promtool expects of an alert at the end of a half hour."""
    labels = dict(rule["labels"])
    if rule["alert"] in ("NotesDown", "NotesDatabaseWaits"):
        labels |= {"job": "notes"} | ({} if half_hour == "gone" else {"instance": "a"})
    alert = {"exp_labels": labels, "exp_annotations": rule["annotations"]}
    given = {"eval_time": "30m", "alertname": rule["alert"]}
    return given | {"exp_alerts": [alert] if fires else []}


def test_no_alert_fires_without_its_trouble(tmp_path: Path) -> None:
    """The rules are valid. Each kind of trouble fires its own alert alone, and health none."""
    needs("promtool")
    tests = [
        {
            "name": name,
            "interval": "1m",
            "input_series": given,
            "alert_rule_test": [expected(rule, rule["alert"] in fire, name) for rule in RULES],
        }
        for name, (given, fire) in HALF_HOURS.items()
    ]
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(FILE)], "tests": tests}))
    for command in (("check", "rules", FILE), ("test", "rules", file)):
        result = subprocess.run(["promtool", *command], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    assert set().union(*(fire for _, fire in HALF_HOURS.values())) == NAMES


def rules_as_text() -> Iterator[str]:
    """The text of each rule, without the margin that it has in the file."""
    _, *parts = re.split(r"^(?=      - alert:)", FILE.read_text(), flags=re.MULTILINE)
    for part in parts:
        yield textwrap.dedent(part).rstrip("\n") + "\n"


def test_the_page_quotes_the_rules() -> None:
    """The page has a section for each alert, with its rule as it is in the file."""
    assert list(rules_as_text()) == QUOTED[1:]
    for text in QUOTED[1:]:
        assert re.search(
            rf"^## .*\n\n```yaml\n{re.escape(text)}```\n\n\*\*It means\*\*", PAGE, re.M
        )
    assert len(RULES) == PAGE.count("\n**Do first:** ") == 5


def test_queries_ask_for_the_job() -> None:
    """Each selector names the job, as other services have metrics of the same names."""
    for query in QUERIES + [rule["expr"] for rule in RULES]:
        selectors = re.findall(r"\{.*?\}", query)
        assert selectors
        assert all(one.startswith('{job="notes"') for one in selectors), query


def test_the_dashboard_shows_each_metric() -> None:
    """It has each metric that docs/operating.md lists, in panels that don't overlap."""
    page = (ROOT / "docs/operating.md").read_text()
    section = page.partition("**`/metrics`**")[2].partition("**Logs.**")[0]
    rows = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(listed) > 5
    for name in listed:
        assert any(name in query for query in QUERIES), name
    places = [panel["gridPos"] for panel in PANELS]
    taken = [
        (place["x"] + x, place["y"] + y)
        for place in places
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    (variable,) = DASHBOARD["templating"]["list"]
    source = {"type": variable["query"], "uid": f"${{{variable['name']}}}"}
    for part in [*PANELS, *(target for panel in PANELS for target in panel["targets"])]:
        assert part["datasource"] == source
