"""Pictures of every view, light and dark, for the documentation: `python -m tests.browser.screenshots`.

A bridge of its own with simulated freezers, whose plots have a past; nothing of it stays but docs/screenshots/.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, expect

from tests.acceptance.process import ROOT, BridgeProcess
from tests.browser.chromium import chromium
from tests.browser.operator import change, publish
from tests.waiting import until

FOLDER: Final = ROOT / "docs" / "screenshots"
DEVICES: Final = 36
PATIENCE: Final = 60_000
DESKTOP: Final = {"width": 1280, "height": 860}
TALL: Final = {"width": 1280, "height": 1060}
PHONE: Final = {"width": 390, "height": 844}

CONFIG: Final = """
[profiles.freezer]
description = "Cold stores"
match = ["freezer-*"]

[profiles.freezer.commands.defrost]
type = "object"
required = ["minutes"]

[profiles.freezer.commands.defrost.properties.minutes]
type = "integer"
minimum = 1
maximum = 60
default = 10

[profiles.freezer.commands.defrost.properties.mode]
enum = ["gentle", "fast"]
default = "gentle"

[profiles.freezer.commands.reboot]
type = "object"
additionalProperties = false

[sinks.archive]
type = "ndjson"
folder = "archive"

[registry]
unknown = "quarantine"
"""

VIEWS: Final = {
    "overview": ("", ".news li a"),
    "devices": ("devices", "tr[data-device] svg.spark path"),
    "device": ("devices/freezer-0001", ".plot.big canvas"),
    "commands": ("commands", ".rollouts .fleet-bar"),
    "dead-letters": ("letters", ".letters details"),
    "admin": ("admin", "tbody tr"),
}
"""A picture → the place, and what must be there before it is taken."""


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="how long the bridge runs first: its plots need it"
    )
    seconds = parser.parse_args().seconds
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as bridge, chromium() as browser:
        began = time.monotonic()
        furnish(bridge)
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
        act(bridge)
        for scheme in ("light", "dark"):
            shoot(browser, bridge, scheme, DESKTOP, "", ("devices", "dead-letters", "admin"))
            shoot(browser, bridge, scheme, TALL, "", ("overview", "device", "commands"))
            shoot(browser, bridge, scheme, PHONE, "-phone", ("overview", "device"))
    total = sum(path.stat().st_size for path in FOLDER.glob("*.png"))
    print(f"{len(list(FOLDER.glob('*.png')))} pictures, {total:,} bytes")


@contextmanager
def running(folder: Path) -> Iterator[BridgeProcess]:
    """A bridge with freezers."""
    config = folder / "bridge.toml"
    config.write_text(CONFIG)
    bridge = BridgeProcess(folder, {"BRIDGE_CONFIG": str(config)}).start()
    register(bridge)
    simulator = subprocess.Popen(
        [*bridge.command, "simulate", "--devices", str(DEVICES), "--prefix", "freezer-", "--rate", "2"],
        env=bridge.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: len(bridge.online()) == DEVICES, "the freezers", 120)
        yield bridge
    finally:
        simulator.terminate()
        simulator.wait(30)
        bridge.terminate()


def register(bridge: BridgeProcess) -> None:
    """The freezers, with names and tags."""
    places = ("Loading bay", "Hall 1", "Hall 2", "Bakery", "Roof")
    entries = [
        {
            "device_id": f"freezer-{n:04}",
            "tags": [("north", "south", "spare")[n % 3]],
            "metadata": {"name": f"{places[n % 5]}, {'door' if n % 2 else 'back'}", "site": "Cold store Rostock"},
        }
        for n in range(1, DEVICES + 1)
    ]
    change(bridge, "POST", "/registry", {"devices": entries})


def furnish(bridge: BridgeProcess) -> None:
    """A twin, and a day of readings of one freezer."""
    desired = {"interval": 60, "target": -18, "led": {"on": True, "colour": "green"}}
    change(bridge, "PATCH", "/devices/freezer-0001/twin", desired)
    reported = {"interval": 60, "target": -18, "led": {"on": False, "colour": "green"}, "firmware": "1.4.2"}
    publish(bridge, "devices/freezer-0001/state/reported", json.dumps(reported))
    now = time.time()
    day = [
        {
            "ts": now - 60 * minute,
            "id": f"past-{minute}",
            "temperature": round(20 + 2.2 * math.sin(minute / 229) + 0.9 * math.sin(minute / 17) + minute % 7 / 20, 2),
            "humidity": round(52 - 4 * math.sin(minute / 229), 1),
        }
        for minute in range(1440, 0, -1)
    ]
    for start in range(0, len(day), 240):
        publish(bridge, "devices/freezer-0001/telemetry", json.dumps(day[start : start + 240]))


def act(bridge: BridgeProcess) -> None:
    """Commands, a rollout, and messages that are refused."""
    for name, args in (("defrost", {"minutes": 10, "mode": "gentle"}), ("reboot", None), ("fail", None)):
        change(bridge, "POST", "/devices/freezer-0001/commands", {"name": name, "args": args})
    rollout = {"name": "defrost", "args": {"minutes": 5}, "target": {"tag": "north"}, "at_once": 2}
    change(bridge, "POST", "/rollouts", rollout)
    change(bridge, "POST", "/rollouts", {"name": "fail", "target": {"tag": "spare"}, "at_once": 1, "stop_after": "3"})
    schedule = {"name": "defrost", "args": {"minutes": 10}, "target": {"profile": "freezer"}}
    change(bridge, "POST", "/schedules", {**schedule, "cron": "30 2 * * 1-5", "tz": "Europe/Berlin"})
    publish(bridge, "devices/freezer-0037/telemetry", '{"temperature": -18.1}')
    publish(bridge, "devices/scale-3/telemetry", '{"weight": 71.5}')
    publish(bridge, "devices/freezer-0012/telemetry", '{"temperature": -17.9, }')
    publish(bridge, "devices/freezer-0012/telemetry", "temperature=-17.9")
    publish(bridge, "devices/freezer-0007/command/response", '{"id": 7, "status": "done"}')
    publish(bridge, "devices/freezer-0031/state/reported", "[]")


def shoot(
    browser: Browser, bridge: BridgeProcess, scheme: str, size: dict[str, int], suffix: str, names: tuple[str, ...]
) -> None:
    """Some views in one scheme."""
    context = browser.new_context(color_scheme=scheme, viewport=size)  # type: ignore[arg-type]  # Playwright's own words
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    for name in names:
        place, sign = VIEWS[name]
        page.goto(bridge.url(f"/#/{place}"))
        page.reload()
        expect(page.locator(sign).first).to_be_visible(timeout=PATIENCE)
        if name == "device":
            page.get_by_role("button", name="1 d", exact=True).click()
            page.locator("li[data-command] summary").last.click()
            expect(page.locator(".steps li").first).to_be_visible(timeout=PATIENCE)
        if name == "dead-letters":
            page.locator(".letters summary").first.click()
            expect(page.locator(".letters pre")).to_be_visible(timeout=PATIENCE)
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(2_500)  # a picture, not a test: sparklines fill, plots settle
        page.screenshot(path=FOLDER / f"{name}{suffix}-{scheme}.png")
    context.close()


if __name__ == "__main__":
    main()
