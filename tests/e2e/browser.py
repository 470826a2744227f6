"""The machine's own Chromium, headless: nothing is downloaded for it, and it asks for nothing itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DRIVER = "chromedriver"
WAITS_S = 20
QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--window-size=1440,900",
)


def found() -> tuple[str, str]:
    """Paths of browser and driver; the test fails where one is missing."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which(DRIVER)
    if browser is None or driver is None:
        pytest.fail(
            "the console's page is tested in Chromium, which is not on PATH: install Chromium (or Chrome) and "
            "chromedriver (Debian: apt install chromium chromium-driver)"
        )
    return browser, driver


@contextmanager
def opened() -> Iterator[webdriver.Chrome]:
    browser, driver = found()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for switch in QUIET:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    chrome.set_script_timeout(WAITS_S)
    try:
        yield chrome
    finally:
        chrome.quit()


def until(chrome: webdriver.Chrome, true: Callable[[], Any], told: str) -> Any:
    return WebDriverWait(chrome, WAITS_S, 0.1).until(lambda _: true(), f"never came: {told}")


def prefers(chrome: webdriver.Chrome, scheme: str) -> None:
    """The system's dark or light."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def wide(chrome: webdriver.Chrome, pixels: int, high: int) -> None:
    """The size of the screen; below 600 wide a phone's."""
    size = {"width": pixels, "height": high, "deviceScaleFactor": 1, "mobile": pixels < 600}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def hosts_asked(chrome: webdriver.Chrome) -> set[str]:
    """Every host:port that pages have sent anything to since this was last asked; `data:` asks nobody."""
    said = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    urls = [
        message["params"]["request"]["url"] if "request" in message["params"] else message["params"]["url"]
        for message in said
        if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated")
    ]
    return {urlsplit(url).netloc for url in urls if not url.startswith(("data:", "blob:", "chrome:"))}
