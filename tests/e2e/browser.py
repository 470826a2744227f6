"""Headless Chromium for tests: the installed one, which makes no requests of its own."""

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
TIMEOUT_S = 20
SWITCHES = (
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


def find_chromium() -> tuple[str, str]:
    """Return the paths of browser and driver. Fail the test if one is missing."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which(DRIVER)
    if browser is None or driver is None:
        pytest.fail(
            "Chromium or chromedriver is not on PATH: install both (`sh deploy/local/chromium.sh`, or on Debian "
            "`apt install chromium chromium-driver`)"
        )
    return browser, driver


@contextmanager
def open_browser() -> Iterator[webdriver.Chrome]:
    """Open a browser for the block."""
    browser, driver = find_chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for switch in SWITCHES:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    chrome.set_script_timeout(TIMEOUT_S)
    try:
        yield chrome
    finally:
        chrome.quit()


def wait_until(chrome: webdriver.Chrome, condition: Callable[[], Any], description: str) -> Any:
    """Return the value of `condition` as soon as it is true."""
    return WebDriverWait(chrome, TIMEOUT_S, 0.1).until(lambda _: condition(), f"timed out: {description}")


def set_color_scheme(chrome: webdriver.Chrome, scheme: str) -> None:
    """Set the system's color scheme: `dark` or `light`."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def set_screen_size(chrome: webdriver.Chrome, width: int, height: int) -> None:
    """Set the size of the screen in pixels; below 600 wide it is a phone's."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def requested_hosts(chrome: webdriver.Chrome) -> set[str]:
    """Return every host:port that pages have sent requests to since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    urls = [
        message["params"]["request"]["url"] if "request" in message["params"] else message["params"]["url"]
        for message in messages
        if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated")
    ]
    return {urlsplit(url).netloc for url in urls if not url.startswith(("data:", "blob:", "chrome:"))}
