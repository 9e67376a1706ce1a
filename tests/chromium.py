"""A headless Chromium of the system's for tests: what Debian's packages chromium and chromium-driver install."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest


def find() -> tuple[str, str]:
    """Paths of browser and driver. Without them a test is skipped; in CI (env CI set) it fails."""
    found = [next(filter(None, map(shutil.which, names)), None) for names in (("chromium", "google-chrome"),
                                                                             ("chromedriver",))]  # fmt: skip
    if None not in found:
        return str(found[0]), str(found[1])
    reason = "no Chromium with its driver here: apt-get install chromium chromium-driver (as root launch/test.sh does)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def browser(width: int = 1280, height: int = 900) -> Iterator:
    """A selenium driver, its log of requests on."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    binary, driver_path = find()
    options = Options()
    options.binary_location = binary
    with tempfile.TemporaryDirectory() as profile:
        for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
                     "--disable-background-networking", "--disable-component-update", "--no-first-run",
                     "--disable-sync", "--disable-default-apps", f"--user-data-dir={profile}",
                     f"--window-size={width},{height}"):  # fmt: skip
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(driver_path))
        try:
            yield driver
        finally:
            driver.quit()


def prefer_dark(driver) -> None:
    """As for somebody who reads light on dark; a page looks when it is loaded."""
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def resize(driver, width: int, height: int) -> None:
    """A page of that size, below the narrowest window too."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def requested(driver) -> set[str]:
    """Addresses that the page asked for since it was last looked at."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
