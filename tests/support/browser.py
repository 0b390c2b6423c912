"""A real browser for what people see: headless Chromium, from the system or from Playwright's own download."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import Page, sync_playwright

SYSTEM = ("chromium", "google-chrome")


@contextmanager
def browser(width: int = 1500, height: int = 1000) -> Iterator[Page]:
    """Yield a page of a browser of this size in pixels."""
    path = next((found for name in SYSTEM if (found := shutil.which(name))), None)
    with sync_playwright() as playwright:
        # --no-sandbox: containers run the tests as root, and only our own servers are visited
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield chromium.new_page(viewport={"width": width, "height": height})
        finally:
            chromium.close()


def prefect_page(page: Page, url: str, password: str) -> None:
    """Go to a page of Prefect's, past its form for the password."""
    parts = urlsplit(url)
    page.goto(f"{parts.scheme}://{parts.netloc}/login?redirect={parts.path}")
    page.locator("input[type=password]").fill(password)
    page.get_by_role("button", name="Login").click()
    page.wait_for_url(url)
