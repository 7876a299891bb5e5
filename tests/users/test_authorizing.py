"""The documentation page of a service that needs a token, as a browser shows it."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions as expected
from selenium.webdriver.support.wait import WebDriverWait

from tests.contract.test_docs import HOST, browser, find, try_out
from tests.support.operating import add_user
from tests.support.servers import running

__all__ = ["browser"]


def test_browser_authorizes(
    new_database: Callable[[str], str], tmp_path: Path, browser: Chrome
) -> None:
    """If a token is needed, "Authorize" takes it and "Try it out" sends it."""
    database_url = new_database("sqlite")
    token = add_user(database_url, "bob")
    with running(database_url, tmp_path / "log", ACCESS="token") as url:
        browser.get(f"http://{HOST}:{urlsplit(url).port}/docs")
        assert try_out(browser, ".opblock-get").startswith("401")

        find(browser, ".scheme-container .authorize")()
        find(browser, ".auth-container input")()
        browser.find_element(By.CSS_SELECTOR, ".auth-container input").send_keys(token)
        find(browser, ".auth-btn-wrapper .authorize")()
        find(browser, ".auth-btn-wrapper .btn-done")()
        find(browser, ".opblock-get .execute")()

        shown = (By.CSS_SELECTOR, ".opblock-get .live-responses-table .response")
        WebDriverWait(browser, 30).until(expected.text_to_be_present_in_element(shown, "200"))
        assert "[]" in browser.find_element(*shown).text
