"""What a page must be in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By


def assert_shown(browser: webdriver.Chrome, page: Path, width: int, *, num_images: int) -> None:
    """Open a page: pictures with alt texts that fit, no errors, nothing asked of a network."""
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width == 390}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(details => { details.open = true })")
    images = browser.find_elements(By.TAG_NAME, "img")
    assert len(images) == num_images
    for image in images:
        assert image.get_attribute("alt")
        assert int(str(image.get_property("naturalWidth"))) > 0
        assert 0 < image.size["width"] <= width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith("file:") for url in asked)
    assert all(url.startswith(("file:", "data:")) for url in asked), asked
