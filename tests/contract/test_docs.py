"""The documentation page, as a browser shows it and as it is delivered."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2
import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions as expected
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.databases import execute
from tests.support.following import live
from tests.support.notes import known
from tests.support.servers import free_port, process, running, serving, uvicorn
from tests.support.waiting import poll

CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")

# Swagger UI does less on localhost than elsewhere, such as leaving its online validator alone.
HOST = "notes.test"


@pytest.fixture(scope="module")
def service(
    new_database: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    log = tmp_path_factory.mktemp("docs") / "service.log"
    with serving(new_database("sqlite"), log) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    if CHROMIUM is None or CHROMEDRIVER is None:
        assert "CI" not in os.environ, "nothing is skipped in CI"
        pytest.skip("chromium and chromedriver are needed")
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-proxy-server",
        "--window-size=1200,2000",
        f"--host-resolver-rules=MAP {HOST} 127.0.0.1",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options, ChromeService(CHROMEDRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def find(browser: Chrome, selector: str) -> Callable[[], None]:
    """Waits until the element can be clicked, and gives a function that clicks it."""
    condition = expected.element_to_be_clickable((By.CSS_SELECTOR, selector))
    return WebDriverWait(browser, 30).until(condition).click


def try_out(browser: Chrome, operation: str, body: str = "") -> str:
    """Carries the operation out with "Try it out" and gives the response that the page shows."""
    operation += " "
    find(browser, operation + ".opblock-summary-control")()
    find(browser, operation + ".try-out__btn")()
    if body:
        textarea = operation + "textarea.body-param__text"
        find(browser, textarea)()
        field = browser.find_element(By.CSS_SELECTOR, textarea)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(body)
    find(browser, operation + ".execute")()
    shown = (By.CSS_SELECTOR, operation + ".live-responses-table .response")
    response = WebDriverWait(browser, 30).until(expected.visibility_of_element_located(shown))
    return response.text


def log_of(browser: Chrome, kind: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = browser.execute("getLog", {"type": kind})["value"]
    return entries


def requested(browser: Chrome) -> set[str]:
    """Every URL that the browser asked the network for."""
    messages = [json.loads(entry["message"])["message"] for entry in log_of(browser, "performance")]
    urls = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    return {url for url in urls if urlsplit(url).scheme != "data"}


class References(HTMLParser):
    """The URLs in a page's attributes, and whether it has scripts or styles inline."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.inline = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.urls += [attributes[name] or "" for name in ("src", "href") if name in attributes]
        self.inline |= tag == "style" or (tag == "script" and "src" not in attributes)


def test_browser_creates_and_lists_notes(service: httpx2.Client, browser: Chrome) -> None:
    """A person creates and lists notes on /docs, with nothing from outside and no errors."""
    origin = f"http://{HOST}:{service.base_url.port}"
    browser.get(f"{origin}/docs")

    created = try_out(browser, ".opblock-post", '{"text": "From the browser", "completed": true}')

    notes = service.get("/notes/").json()
    note = notes[-1]
    assert known(note) == {"id": note["id"], "text": "From the browser", "completed": True}
    assert created.startswith("200")
    assert f'"id": {note["id"]}' in created
    assert '"text": "From the browser"' in created

    listed = try_out(browser, ".opblock-get")

    assert listed.startswith("200")
    assert f'"id": {note["id"]}' in listed
    assert '"text": "From the browser"' in listed
    urls = requested(browser)
    assert {f"{origin}/docs", f"{origin}/openapi.json", f"{origin}/notes/"} <= urls
    assert {url for url in urls if not url.startswith(f"{origin}/")} == set()
    assert [entry for entry in log_of(browser, "browser") if entry["level"] == "SEVERE"] == []


def test_browser_shows_what_works(
    new_database: Callable[[str], str], tmp_path: Path, browser: Chrome
) -> None:
    """The page has headings and explains operations on notes and users, and examples work."""
    database_url = new_database("sqlite")
    with running(database_url, tmp_path / "log") as url:
        browser.get(f"http://{HOST}:{urlsplit(url).port}/docs")
        find(browser, ".opblock-summary-control")
        document = httpx2.get(f"{url}/openapi.json").json()
        if "/users/{username}" in document["paths"]:
            columns = "username, is_active, created_at, token_sha256"
            values = f"'bob', true, 0, '{'0' * 64}'"
            execute(database_url, f"INSERT INTO users ({columns}) VALUES ({values})")
        headings = browser.find_elements(By.CSS_SELECTOR, "h3.opblock-tag")
        assert [heading.text.split("\n") for heading in headings] == [
            [tag["name"], tag["description"]] for tag in document["tags"]
        ]

        for path, item in document["paths"].items():
            # Others may need a user.
            for described in item.values() if path.startswith(("/notes/", "/users/")) else ():
                operation = f"#operations-{described['tags'][0]}-{described['operationId']}"
                answer = try_out(browser, operation)
                assert answer[:3] in ("200", "204"), answer
                shown = browser.find_element(By.CSS_SELECTOR, operation).text
                # Markdown's marks aren't shown.
                assert described["description"].partition(".")[0].partition("`")[0] in shown
                for parameter in described["parameters"]:
                    assert parameter["description"].partition("`")[0] in shown
                # The page renders all that is open again and again.
                find(browser, f"{operation} .opblock-summary-control")()
        notes = httpx2.get(f"{url}/notes/").json()
        assert known(notes) == [{"id": 2, "text": "Buy milk", "completed": False}]


SHOWN = """
return [
    document.getElementById("state").textContent,
    ...Array.from(document.querySelectorAll("#notes li"), (item) => item.textContent),
]
"""


def test_browser_follows_notes(
    new_database: Callable[[str], str], tmp_path: Path, browser: Chrome
) -> None:
    """The page /docs/live shows notes come, change and go, also after a restart and after a 503."""
    database_url = new_database("sqlite")
    live(database_url)
    execute(database_url, "INSERT INTO notes (text, completed) VALUES ('there before', true)")
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def serve(name: str) -> AbstractContextManager[Any]:
        variables = {"DATABASE_URL": database_url, "LIVE": "1"}
        return process(uvicorn(port), port, tmp_path / name, variables)

    def until(state: str, *notes: str) -> None:
        def shows(browser: Chrome) -> bool:
            return bool(browser.execute_script(SHOWN) == [state, *notes])

        WebDriverWait(browser, 60).until(shows, f"not {[state, *notes]}")

    with serve("1.log"):
        browser.get(f"http://{HOST}:{port}/docs/live")
        until("Connected", "1: there before (completed)")
        httpx2.post(f"{url}/notes/", json={"text": "Buy milk", "completed": False})
        until("Connected", "2: Buy milk", "1: there before (completed)")
        httpx2.patch(f"{url}/notes/2", json={"completed": True})
        httpx2.delete(f"{url}/notes/1")
        until("Connected", "2: Buy milk (completed)")
    until("Not connected", "2: Buy milk (completed)")
    execute(database_url, "INSERT INTO notes (text, completed) VALUES ('meanwhile', false)")
    with serve("2.log"):
        until("Connected", "3: meanwhile", "2: Buy milk (completed)")
        # As `live off` does, and later `live on`, which take longer.
        execute(database_url, "UPDATE live SET resource = 'nothing' WHERE resource = 'notes'")
        # A browser's EventSource gives up after one 503, so the page has made another one.
        refused = re.compile("path=/notes/changes status=503").findall
        poll(lambda: len(refused((tmp_path / "2.log").read_text())) > 1)
        httpx2.delete(f"{url}/notes/3")
        again = f"UPDATE live SET resource = 'notes', life = '{'0' * 32}'"
        execute(database_url, f"{again} WHERE resource = 'nothing'")
        until("Connected", "2: Buy milk (completed)")
        httpx2.post(f"{url}/notes/", json={"text": "again", "completed": False})
        until("Connected", "4: again", "2: Buy milk (completed)")

        page = httpx2.get(f"{url}/docs/live")
        assert References(page.text).urls == ["live.js"]
        assert not References(page.text).inline
        assert page.headers["content-security-policy"].startswith("default-src 'self';")


def test_page_is_self_contained(service: httpx2.Client) -> None:
    """The page refers to nothing but files of this origin that are there."""
    response = service.get("/docs")
    page = References(response.text)

    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert len(page.urls) == 4
    for reference in page.urls:
        url = urljoin(str(response.url), reference)
        assert urlsplit(url).netloc == urlsplit(str(response.url)).netloc
        assert service.get(url).status_code == 200, url


def test_page_has_nothing_inline(service: httpx2.Client) -> None:
    """The page works under a Content-Security-Policy that forbids inline scripts and styles."""
    assert not References(service.get("/docs").text).inline


def test_script_is_self_contained(service: httpx2.Client) -> None:
    """The script that starts Swagger UI names no other origin."""
    response = service.get("/docs/start.js")

    assert response.headers["content-type"].startswith("text/javascript")
    assert re.findall(r'url: "(.*?)"', response.text) == ["openapi.json"]
    assert "//" not in response.text


def test_document_names_no_other_server(service: httpx2.Client) -> None:
    """The OpenAPI document leaves the server to the page, so requests go where the page is."""
    servers = service.get("/openapi.json").json()["servers"]
    assert [server["url"] for server in servers] == ["/"]


@pytest.mark.parametrize("path", ["/", "/docs/"])
def test_redirects_to_docs(service: httpx2.Client, path: str) -> None:
    """The bare address leads to the page, and so does the page's with a slash."""
    response = service.get(path)

    assert response.status_code == 307
    assert response.headers["location"] == f"{str(service.base_url).rstrip('/')}/docs"


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("swagger-ui.css", "text/css"),
        ("swagger-ui-bundle.js", "text/javascript"),
        ("favicon-32x32.png", "image/png"),
    ],
)
def test_assets_are_served(service: httpx2.Client, name: str, content_type: str) -> None:
    """The page's assets are delivered with the types that browsers insist on."""
    response = service.get(f"/docs/assets/{name}")

    assert response.status_code == 200
    assert response.headers["content-type"].startswith(content_type)
    assert response.content


@pytest.mark.parametrize("name", ["index.css", "LICENSE", "swagger-ui.css.map", "%2e%2e", "x.js"])
def test_other_files_are_not_served(service: httpx2.Client, name: str) -> None:
    """Of Swagger UI's files the page's own are delivered alone."""
    answer = service.get(f"/docs/assets/{name}")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    ("path", "caching", "least"),
    [
        ("/docs", "no-cache", None),
        ("/docs/start.js", "no-cache", None),
        ("/openapi.json", "no-cache", 5),
        ("/docs/assets/swagger-ui.css", "public, max-age=86400", 5),
        ("/docs/assets/swagger-ui-bundle.js", "public, max-age=86400", 3),
        ("/docs/assets/favicon-32x32.png", "public, max-age=86400", None),
    ],
)
def test_browsers_keep_the_page(
    service: httpx2.Client, path: str, caching: str, least: int | None
) -> None:
    """What the page is made of has a tag, one for each encoding, and is not sent again.

    `least` is how many times smaller it is in gzip, in which neither images are nor small files.
    """
    tags = {}
    bodies = set()
    for coding in ("identity", "gzip"):
        headers = {"accept-encoding": coding}
        answer = service.get(path, headers=headers)
        bodies.add(answer.content)
        tags[coding] = tag = answer.headers["etag"]
        assert answer.headers["cache-control"] == caching
        in_gzip = coding == "gzip" and least is not None
        assert ("content-encoding" in answer.headers) == in_gzip
        if least is not None:
            assert answer.headers["vary"] == "Accept-Encoding"
        if in_gzip:
            assert least is not None
            assert int(answer.headers["content-length"]) < len(answer.content) / least
        for method in ("GET", "HEAD"):
            known = service.request(method, path, headers={**headers, "if-none-match": tag})
            assert (known.status_code, known.content) == (304, b"")
            for name in ("etag", "cache-control", "vary"):
                assert known.headers.get(name) == answer.headers.get(name)
        head = service.head(path, headers=headers)
        for name in ("content-type", "content-encoding", "etag"):
            assert head.headers.get(name) == answer.headers.get(name)
        # It is compressed for nobody who only asks for the length.
        length = None if in_gzip else answer.headers["content-length"]
        assert head.headers.get("content-length") == length
    assert len(bodies) == 1
    assert len(set(tags.values())) == (1 if least is None else 2)
    if least is not None:
        headers = {"accept-encoding": "gzip", "if-none-match": tags["identity"]}
        assert service.get(path, headers=headers).status_code == 200
