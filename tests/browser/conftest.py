"""One browser for all tests, and pages that watch what the page asks for and complains about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request

from tests.acceptance.conftest import make_bridge
from tests.acceptance.process import BridgeProcess
from tests.browser.chromium import chromium
from tests.waiting import until

__all__ = ["make_bridge"]  # a fixture, which pytest finds here by its name

PATIENCE = 30_000.0
"""Milliseconds that a browser on a loaded machine may take for what a person sees at once."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser of this module's tests."""
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    """A bridge with three simulated devices, for all tests that need no other: each leaves those three as they are."""
    bridge = BridgeProcess(tmp_path_factory.mktemp("bridge")).start("--simulate", "3")
    try:
        until(lambda: len(bridge.online()) == 3, "three simulated devices", 60)
        yield bridge
        bridge.finish()
    finally:
        if bridge.running:
            bridge.kill()
        print(bridge.output()[-8000:])


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens the page of a bridge at a place, as `devices`. At the end of the test: nothing was asked of anybody but
    the bridge, and no script has failed or was refused."""
    contexts: list[BrowserContext] = []
    asked: list[str] = []
    faults: list[str] = []

    def open_(bridge: BridgeProcess, place: str = "", **options: object) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})  # type: ignore[arg-type]  # Playwright's many options
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        own = urlsplit(bridge.url("")).netloc

        def watch(request: Request) -> None:
            address = urlsplit(request.url)
            if address.scheme != "data" and address.netloc != own:
                asked.append(request.url)

        context.on("request", watch)
        page.on("pageerror", lambda error: faults.append(str(error)))
        # What the browser itself reports of answers that say no is no fault of the page.
        page.on(
            "console",
            lambda message: (
                faults.append(message.text)
                if message.type == "error" and not message.text.startswith("Failed to load resource")
                else None
            ),
        )
        page.goto(bridge.url(f"/#/{place}"))
        return page

    try:
        yield open_
    finally:
        for context in contexts:
            context.close()
    assert not asked, f"the page has asked others: {asked}"
    assert not faults
