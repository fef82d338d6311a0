"""One browser for all tests, and pages that watch what the page asks for and complains about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request

from tests.acceptance.conftest import make_bridge
from tests.acceptance.process import BridgeProcess
from tests.browser.chromium import chromium
from tests.browser.operator import change
from tests.waiting import until

__all__ = ["make_bridge"]  # a fixture, which pytest finds here by its name

PATIENCE = 30_000.0
"""Milliseconds that a browser on a loaded machine may take for what a person sees at once."""


# For the package: one browser and one bridge for all its tests. Not for the session: Playwright's loop must have ended
# before the async tests of others begin.


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """The browser."""
    with chromium() as started:
        yield started


ADMIN: Final = "the-admin-token-of-these-tests"

CONFIG: Final = f"""
[http]
require_token = true
token = "{ADMIN}"
max_failed_logins = 3
# So a test can come from an address of its own, and be locked out there.
proxies = ["127.0.0.1"]

[registry]
unknown = "quarantine"

[profiles.oven]
match = ["oven-*"]

[profiles.oven.commands.defrost]
required = ["minutes"]

[profiles.oven.commands.defrost.properties]
minutes = {{ type = "integer", minimum = 1, maximum = 60 }}
mode = {{ enum = ["gentle", "fast"] }}
fan = {{ type = "boolean" }}
"""

REGISTERED: Final = (
    "bell-1", "evil", "lamp-0001", "nobody-1", "oven-7", "press-1", "sim-0001", "sim-0002", "sim-0003", "valve-1",
)  # fmt: skip
"""The devices of the tests; others have to wait for approval."""


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    """A bridge with three simulated devices, `sim-0001` to `-0003`, for all tests that need no other. Each leaves those
    three as they are. It asks for a token."""
    folder = tmp_path_factory.mktemp("bridge")
    config = folder / "bridge.toml"
    config.write_text(CONFIG)
    bridge = BridgeProcess(folder)
    bridge.token = ADMIN
    bridge.start("--config", str(config), "--simulate", "3")
    try:
        change(bridge, "POST", "/registry", {"devices": [{"device_id": device} for device in REGISTERED]})
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
    """Opens the page of a bridge at a place, as `devices`, logged in as its admin unless another `token` is given, or
    None. At the end of the test: nothing was asked of anybody but the bridge, and no script has failed, nor was
    anything refused by the content security policy."""
    contexts: list[BrowserContext] = []
    asked: list[str] = []
    faults: list[str] = []

    def open_(bridge: BridgeProcess, place: str = "", token: str | None = ADMIN, **options: object) -> Page:
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
        if bridge.token and token:
            assert context.request.post(bridge.url("/api/v1/session"), data={"token": token}).ok
        page.goto(bridge.url(f"/#/{place}"))
        return page

    try:
        yield open_
    finally:
        for context in contexts:
            context.close()
    assert not asked, f"the page has asked others: {asked}"
    assert not faults
