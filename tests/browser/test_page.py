"""The live page, as people meet it: in a browser, against a real bridge."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import urllib.error
import urllib.request

import pytest
from playwright.sync_api import Page, expect

from tests.acceptance.conftest import MakeBridge
from tests.acceptance.process import ROOT, BridgeProcess
from tests.browser.conftest import PATIENCE, OpenPage
from tests.browser.operator import change, publish
from tests.servers import Postgres
from tests.waiting import until

pytestmark = pytest.mark.browser

expect.set_options(timeout=PATIENCE)

STATIC = ROOT / "bridge" / "http" / "static"
MOST = 150_000
"""Bytes that any view may load, as they are before they are compressed."""

NASTY = '<img src=x onerror="document.title=1"><script>document.title=2</script>'


def points(page: Page) -> int:
    """How many points the plot of a device shows."""
    return int(page.locator(".plot.big").get_attribute("data-points") or 0)


# ---------------------------------------------------------------------- what it weighs


def test_the_vendored_library_is_the_one_that_was_checked() -> None:
    lines = (STATIC / "vendor" / "CHECKSUMS").read_text().splitlines()
    assert len(lines) == 3
    for line in lines:
        digest, name = line.split()
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == digest, name


def test_every_view_is_light(simulated: BridgeProcess, open_page: OpenPage) -> None:
    for place in ("", "devices", "devices/sim-0001", "commands", "letters"):
        page = open_page(simulated, place)
        expect(page.locator("#main > *").first).to_be_attached()
        page.wait_for_load_state("load")
        loaded = page.evaluate("performance.getEntriesByType('resource').map(entry => new URL(entry.name).pathname)")
        files = {"/", *(path for path in loaded if path.startswith("/static/"))}
        sizes = {path: len(simulated.text(path).encode()) for path in files}
        assert sum(sizes.values()) < MOST, (place, sizes)
        print(f"/#/{place}: {sum(sizes.values()):,} bytes")


def test_it_is_sent_compressed_and_only_when_it_has_changed(simulated: BridgeProcess) -> None:
    def fetch(path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(simulated.url(path), headers=named)  # noqa: S310 - our own loopback URL
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own loopback URL
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()

    status, headers, body = fetch("/static/page.css", Accept_Encoding="gzip")
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert gzip.decompress(body) == (STATIC / "page.css").read_bytes()
    assert fetch("/static/page.css", If_None_Match=headers["etag"])[0] == 304
    assert "default-src 'none'" in headers["content-security-policy"]
    for name in ("../page.py", "..%2fpage.py", "nothing.js", "vendor/uPlot.LICENSE", ""):
        assert fetch(f"/static/{name}")[0] == 404, name


# ---------------------------------------------------------------------- what it is for


def test_a_device_comes_online_and_its_plot_moves_and_it_does_what_it_is_told(
    make_bridge: MakeBridge, open_page: OpenPage
) -> None:
    bridge = make_bridge().start()
    page = open_page(bridge)
    expect(page.locator("#online")).to_have_text("0")
    simulator = subprocess.Popen(
        [*bridge.command, "simulate", "--devices", "1", "--rate", "5"],
        env=bridge.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        expect(page.locator("#online")).to_have_text("1")
        expect(page.locator(".news")).to_contain_text("sim-0001 online")
        page.get_by_role("link", name="Devices", exact=True).click()
        row = page.locator("tr[data-device=sim-0001]")
        expect(row).to_contain_text("online")
        expect(row.locator("svg.spark path")).to_be_visible()
        row.get_by_role("link").click()

        expect(page.get_by_role("heading", name="sim-0001")).to_be_visible()
        expect(page.locator(".plot.big canvas")).to_be_visible()
        page.get_by_role("button", name="humidity").click()
        before = points(page)
        until(lambda: points(page) > before + 5, "the plot to move", PATIENCE / 1000)

        page.get_by_label("Name").fill("reboot")
        page.get_by_label("Arguments").fill('{"delay": 5')
        page.get_by_role("button", name="Send", exact=True).click()
        expect(page.get_by_role("alert").filter(has_text="not JSON")).to_be_visible()
        page.get_by_label("Arguments").fill('{"delay": 5}')
        page.get_by_role("button", name="Send", exact=True).click()
        sent = page.locator("li[data-command]")
        expect(sent.locator("summary")).to_contain_text("succeeded")
        for step in ("queued", "sent", "delivered", "succeeded"):
            expect(sent.locator(".steps")).to_contain_text(step)
        expect(sent.locator("pre")).to_contain_text('"delay": 5')
    finally:
        simulator.terminate()
        simulator.wait(30)
    expect(page.locator(".device-head")).to_contain_text("offline")


@pytest.mark.postgres
def test_it_says_when_the_database_is_away_and_when_the_bridge_is(make_bridge: MakeBridge, open_page: OpenPage) -> None:
    with Postgres(durable=False) as postgres:
        bridge = make_bridge(BRIDGE_DATABASE__URL=postgres.url).start()
        page = open_page(bridge)
        expect(page.locator("#link")).to_have_text("Live")
        notices = page.locator("#notices")
        expect(notices).to_be_empty()
        postgres.stop()
        expect(notices).to_contain_text("The database is away")
        postgres.start()
        expect(notices).to_be_empty()
        expect(page.locator("#toasts")).to_contain_text("The database is back")

        bridge.terminate()
        expect(notices).to_contain_text("No connection to the bridge")
        expect(page.locator("#link")).to_have_text("Connection lost")
        bridge.start()
        publish(bridge, "devices/late/telemetry", '{"t": 1}')
        expect(page.locator("#link")).to_have_text("Live")
        expect(notices).to_be_empty()
        expect(page.locator(".hero")).to_contain_text("of 1 devices")


def test_who_has_no_token_stays_out_and_a_viewer_only_looks(make_bridge: MakeBridge, open_page: OpenPage) -> None:
    bridge = make_bridge(BRIDGE_HTTP__REQUIRE_TOKEN="true", BRIDGE_HTTP__TOKEN="the-admin-token-of-this-test").start()
    bridge.token = "the-admin-token-of-this-test"
    viewer = bridge.run("tokens", "add", "screen", "--role", "viewer").stdout.strip()
    publish(bridge, "devices/fridge-7/telemetry", '{"t": 4.2}')

    page = open_page(bridge, "devices/fridge-7")
    page.get_by_label("Token").fill("guessed")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="not good")).to_be_visible()
    page.get_by_label("Token").fill(viewer)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="fridge-7")).to_be_visible()
    expect(page.get_by_text("screen · viewer")).to_be_visible()
    expect(page.get_by_role("heading", name="Presence")).to_be_visible()
    expect(page.get_by_role("button", name="Send", exact=True)).to_have_count(0)
    expect(page.get_by_role("button", name="Change what is desired")).to_have_count(0)

    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Token").fill("the-admin-token-of-this-test")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()


def test_what_a_device_sends_is_text_and_nothing_else(simulated: BridgeProcess, open_page: OpenPage) -> None:
    publish(simulated, "devices/evil/telemetry", json.dumps({NASTY: 1, "t": NASTY}))
    publish(simulated, "devices/evil/telemetry", NASTY)
    publish(simulated, "devices/evil/state/reported", json.dumps({NASTY: NASTY}))
    entry = {"device_id": "evil", "tags": [], "metadata": {"name": NASTY, NASTY: NASTY}}
    change(simulated, "POST", "/registry", {"devices": [entry]})

    page = open_page(simulated, "devices/evil")
    expect(page.locator(".messages")).to_contain_text("<script>")
    expect(page.locator(".twin")).to_contain_text("<img src=x")
    expect(page.locator(".facts-line").first).to_contain_text("<script>")
    page.locator(".letters summary").first.click()
    expect(page.locator(".letters pre")).to_contain_text("<script>")
    for place in ("devices?search=evil", "letters", ""):
        page.goto(simulated.url(f"/#/{place}"))
        expect(page.locator("main")).to_contain_text("evil")
    assert page.locator("img, main script").count() == 0
    assert page.title() not in ("1", "2")


def test_the_keyboard_is_enough(simulated: BridgeProcess, open_page: OpenPage) -> None:
    page = open_page(simulated)
    expect(page.locator("#online")).to_have_text("3")

    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent.trim()").startswith(name):
                return
        raise AssertionError(f"Tab does not lead to {name!r}")

    tab_to("Devices")
    page.keyboard.press("Enter")
    expect(page.locator("tr[data-device]").first).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("0002")
    expect(page.locator("tr[data-device]")).to_have_count(1)
    tab_to("sim-0002")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="sim-0002")).to_be_visible()
    page.get_by_label("Name").focus()
    page.keyboard.type("reboot")
    page.keyboard.press("Enter")
    expect(page.locator("li[data-command] summary")).to_contain_text("succeeded")


def test_it_fits_a_phone(simulated: BridgeProcess, open_page: OpenPage) -> None:
    page = open_page(simulated, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    for place, sign in (
        ("", "#online"),
        ("devices", "tr[data-device]"),
        ("devices/sim-0001", ".plot.big canvas"),
        ("commands", ".preview b"),
        ("letters", "main h1"),
    ):
        page.goto(simulated.url(f"/#/{place}"))
        expect(page.locator(sign).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, place


def test_what_is_desired_is_changed_beside_what_is_reported_and_nobody_is_overwritten(
    simulated: BridgeProcess, open_page: OpenPage
) -> None:
    publish(simulated, "devices/valve-1/state/reported", '{"open": 10, "mode": {"auto": true}}')
    page = open_page(simulated, "devices/valve-1")
    expect(page.locator(".twin")).to_contain_text("mode.auto")
    page.get_by_role("button", name="Change what is desired").click()
    editor = page.get_by_label("Desired, as JSON")
    editor.fill('{"open": 50')
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert").filter(has_text="not JSON yet")).to_be_visible()

    change(simulated, "PATCH", "/devices/valve-1/twin", {"limit": 90})  # somebody else is faster
    editor.fill('{"open": 50}')
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert").filter(has_text="changed meanwhile: it is version 1")).to_be_visible()
    assert simulated.get("/api/v1/devices/valve-1/twin")["desired"] == {"limit": 90}
    editor.fill('{"limit": 90, "open": 50}')
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".twin tr", has_text="open")).to_contain_text("10 not yet as desired")
    publish(simulated, "devices/valve-1/state/reported", '{"open": 50, "limit": 90}')
    expect(page.get_by_role("heading", name="Twin")).to_contain_text("as desired")
    assert simulated.get("/api/v1/devices/valve-1/twin")["desired"] == {"limit": 90, "open": 50}


def test_one_command_for_many_shows_who_gets_it_and_what_became_of_each(
    simulated: BridgeProcess, open_page: OpenPage
) -> None:
    page = open_page(simulated, "commands")
    page.get_by_label("Who gets it").select_option("named")
    page.get_by_label("Devices").fill("sim-0001, sim-0002 nobody-1")
    expect(page.locator(".preview")).to_contain_text("3 devices")
    expect(page.locator(".preview .tag").first).to_have_text("nobody-1")
    page.get_by_label("Name").fill("reboot")
    page.get_by_label("Valid for").fill("2")
    page.get_by_role("button", name="Send to these devices").click()
    expect(page.get_by_role("heading", name="reboot")).to_be_visible()
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "100")
    expect(page.locator(".device-head, .head")).to_contain_text("finished")
    page.get_by_role("button", name="expired").click()
    result = page.locator("li[data-command]")
    expect(result).to_have_count(1)
    expect(result).to_contain_text("nobody-1")


def test_a_dead_letter_is_read_and_replayed_and_dropped(simulated: BridgeProcess, open_page: OpenPage) -> None:
    page = open_page(simulated, "letters?device=press-1")
    expect(page.get_by_text("nothing was refused")).to_be_visible()
    publish(simulated, "devices/press-1/telemetry", "pressure=12")
    letter = page.locator("li[data-letter]")
    expect(letter).to_contain_text("not json")
    letter.locator("summary").click()
    expect(letter.locator("pre")).to_have_text("pressure=12")
    first = letter.get_attribute("data-letter")
    letter.get_by_role("button", name="Replay").click()
    expect(page.locator("#toasts")).to_contain_text("refused again")
    expect(page.locator(f"li[data-letter='{first}']")).to_have_count(0)
    letter.locator("summary").click()
    letter.get_by_role("button", name="Drop").click()
    expect(page.get_by_text("nothing was refused")).to_be_visible()
    assert simulated.get("/api/v1/dead-letters?device=press-1")["dead_letters"] == []


def test_a_profile_s_commands_are_a_form_that_checks(make_bridge: MakeBridge, open_page: OpenPage) -> None:
    bridge = make_bridge()
    bridge.folder.mkdir(parents=True)
    config = bridge.folder / "bridge.toml"
    config.write_text(
        "[profiles.default.commands.defrost]\nrequired = ['minutes']\n"
        "[profiles.default.commands.defrost.properties]\n"
        "minutes = { type = 'integer', minimum = 1, maximum = 60 }\n"
        "mode = { enum = ['gentle', 'fast'] }\nfan = { type = 'boolean' }\n"
    )
    bridge.start("--config", str(config))
    publish(bridge, "devices/fridge-7/telemetry", '{"t": 4.2}')
    page = open_page(bridge, "devices/fridge-7")
    minutes = page.get_by_label("minutes")
    for wrong in ("", "0", "61", "2.5"):
        minutes.fill(wrong)
        page.get_by_role("button", name="Send", exact=True).click()
        assert not minutes.evaluate("field => field.validity.valid"), wrong
    minutes.fill("10")
    page.get_by_label("fan").select_option("no")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("li[data-command]")).to_contain_text("defrost")
    (command,) = bridge.get("/api/v1/commands")["commands"]
    assert command["args"] == {"minutes": 10, "fan": False}
