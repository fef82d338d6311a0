"""The live page, as people meet it: in a browser, against a real bridge."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import time
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
MOST_SENT = 76_000
"""Bytes that all views together may have sent, as a browser is sent them: compressed."""

NASTY = '<img src=x onerror="document.title=1"><script>document.title=2</script>'


RANGES = {"1 min": 60, "15 min": 900, "1 h": 3_600, "6 h": 21_600, "1 d": 86_400, "7 d": 604_800, "30 d": 2_592_000}

VIEWS = {
    "": "#online",
    "devices": "tr[data-device]",
    "devices/sim-0001": ".plot.big canvas",
    "commands": ".preview b",
    "letters": "main h1",
    "admin": "form.row",
    "admin/tokens": "form.row",
    "admin/audit": "tbody tr",
    "admin/settings": "tbody tr",
}
"""Each view's place → what must be there before it is looked at."""

UNREADABLE = """() => {
  const parts = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = (colour) => {
    const [r, g, b] = colour.map((part) => ((part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const texts = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!texts || !element.checkVisibility() || element.closest(":disabled, canvas, .unseen, option")) continue;
    let behind = element;
    const back = () => getComputedStyle(behind).backgroundColor;
    while (parts(back())[3] === 0 && behind.parentElement) behind = behind.parentElement;
    const style = getComputedStyle(element);
    const [a, b] = [style.color, back()].map((text) => light(parts(text).slice(0, 3)));
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const needed = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
    if (contrast < needed) found.push(`${element.textContent.slice(0, 40)}: ${contrast.toFixed(2)}`);
  }
  return found;
}"""
"""The texts whose contrast is too low (WCAG 2.2, 1.4.3)."""

NAMELESS = """() => [...document.querySelectorAll("button, a, input, select, textarea, [role=img], [role=progressbar]")]
  .filter((one) => one.checkVisibility() && !one.textContent.trim() && !one.ariaLabel && !one.labels?.length)
  .map((one) => one.outerHTML)"""
"""What can be used or is drawn, and has no name that is read out (WCAG 2.2, 4.1.2)."""


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


def test_every_view_is_light(shared: BridgeProcess, open_page: OpenPage) -> None:
    page = open_page(shared)
    all_sizes: dict[str, tuple[int, int]] = {}
    for place in ("", "devices", "devices/sim-0001", "commands", "letters", "admin"):
        page.goto(shared.url(f"/#/{place}"))
        page.reload()
        expect(page.locator("main h1").first).to_be_attached()
        loaded = page.evaluate("performance.getEntriesByType('resource').map(entry => new URL(entry.name).pathname)")
        files = {"/", *(path for path in loaded if path.startswith("/static/"))}
        sizes = {path: (len(fetch(shared, path)[2]), len(zipped(shared, path))) for path in files}
        total = sum(plain for plain, _ in sizes.values())
        assert total < MOST, (place, sizes)
        print(f"/#/{place}: {total:,} bytes, {sum(sent for _, sent in sizes.values()):,} compressed")
        all_sizes |= sizes
    sent = sum(sent for _, sent in all_sizes.values())
    print(f"all views: {sum(plain for plain, _ in all_sizes.values()):,} bytes, {sent:,} compressed")
    assert sent < MOST_SENT, all_sizes


def fetch(bridge: BridgeProcess, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(bridge.url(path), headers=named)  # noqa: S310 - our own loopback URL
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own loopback URL
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def zipped(bridge: BridgeProcess, path: str) -> bytes:
    """A file as a browser is sent it."""
    _, headers, body = fetch(bridge, path, Accept_Encoding="gzip")
    assert headers["content-encoding"] == "gzip", path
    return body


def test_it_is_sent_compressed_and_only_when_it_has_changed(shared: BridgeProcess) -> None:
    status, headers, body = fetch(shared, "/static/page.css", Accept_Encoding="gzip")
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert gzip.decompress(body) == (STATIC / "page.css").read_bytes()
    assert fetch(shared, "/static/page.css", If_None_Match=headers["etag"])[0] == 304
    assert "default-src 'none'" in headers["content-security-policy"]
    for name in ("../page.py", "..%2fpage.py", "nothing.js", "vendor/uPlot.LICENSE", ""):
        assert fetch(shared, f"/static/{name}")[0] == 404, name


# ---------------------------------------------------------------------- what it is for


def test_a_device_comes_online_and_its_plot_moves_and_it_does_what_it_is_told(
    shared: BridgeProcess, open_page: OpenPage
) -> None:
    page = open_page(shared)
    expect(page.locator("#online")).to_have_text("3")
    simulator = subprocess.Popen(
        [*shared.command, "simulate", "--devices", "1", "--rate", "5", "--prefix", "lamp-"],
        env=shared.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        expect(page.locator("#online")).to_have_text("4")
        expect(page.locator(".news")).to_contain_text("lamp-0001 online")
        page.get_by_role("link", name="Devices", exact=True).click()
        row = page.locator("tr[data-device=lamp-0001]")
        expect(row).to_contain_text("online")
        expect(row.locator("svg.spark path")).to_be_visible()
        row.get_by_role("link").click()

        expect(page.get_by_role("heading", name="lamp-0001")).to_be_visible()
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
        expect(page.locator(".verdict")).to_contain_text("All is well")
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
        expect(page.locator(".verdict")).not_to_contain_text("All is well")
        bridge.start()
        publish(bridge, "devices/late/telemetry", '{"t": 1}')
        expect(page.locator("#link")).to_have_text("Live")
        expect(notices).to_be_empty()
        expect(page.locator(".hero")).to_contain_text("of 1 devices")


def test_what_a_device_sends_is_text_and_nothing_else(shared: BridgeProcess, open_page: OpenPage) -> None:
    publish(shared, "devices/evil/telemetry", json.dumps({NASTY: 1, "t": NASTY}))
    publish(shared, "devices/evil/telemetry", NASTY)
    publish(shared, "devices/evil/state/reported", json.dumps({NASTY: NASTY}))
    publish(shared, "devices/<script>/telemetry", "1")
    entry = {"device_id": "evil", "tags": [], "metadata": {"name": NASTY, NASTY: NASTY}}
    change(shared, "POST", "/registry", {"devices": [entry]})
    change(shared, "POST", "/devices/evil/commands", {"name": NASTY, "args": {NASTY: NASTY}})
    (command,) = shared.get("/api/v1/commands?device=evil")["commands"]
    fetched = ["mosquitto_sub", "-p", str(shared.mqtt_port), "-q", "1", "-C", "1", "-t", "devices/evil/command/request"]
    subprocess.run(fetched, check=True, timeout=60, stdout=subprocess.DEVNULL)
    answer = {"id": command["command_id"], "status": "failed", "error": NASTY}
    publish(shared, "devices/evil/command/response", json.dumps(answer))

    page = open_page(shared, "devices/evil")
    evil = page.locator("li[data-command]")
    expect(evil).to_contain_text("<script>")
    evil.locator("summary").click()
    expect(evil).to_contain_text("failed")
    expect(evil.locator(".trouble")).to_contain_text("<script>")
    expect(page.locator(".messages")).to_contain_text("<script>")
    expect(page.locator(".twin")).to_contain_text("<img src=x")
    expect(page.locator(".facts-line").first).to_contain_text("<script>")
    page.locator(".letters summary").first.click()
    expect(page.locator(".letters pre")).to_contain_text("<script>")
    for place in ("devices?search=evil", "letters", ""):
        page.goto(shared.url(f"/#/{place}"))
        expect(page.locator("main")).to_contain_text("evil")
    page.goto(shared.url("/#/letters?reason=bad_device_id"))
    expect(page.locator(".letters")).to_contain_text("bad device id")
    page.locator(".letters summary").first.click()
    expect(page.locator(".letters code")).to_contain_text("devices/<script>")
    assert page.locator("img, main script").count() == 0
    assert page.title() not in ("1", "2")


def test_the_keyboard_is_enough(shared: BridgeProcess, open_page: OpenPage) -> None:
    page = open_page(shared)
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
    page.keyboard.type("sim-0002")
    expect(page.locator("tr[data-device]")).to_have_count(1)
    tab_to("sim-0002")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="sim-0002")).to_be_visible()
    page.get_by_label("Name").focus()
    page.keyboard.type("reboot")
    page.keyboard.press("Enter")
    expect(page.locator("li[data-command] summary")).to_contain_text("succeeded")


def test_what_is_desired_is_changed_beside_what_is_reported_and_nobody_is_overwritten(
    shared: BridgeProcess, open_page: OpenPage
) -> None:
    publish(shared, "devices/valve-1/state/reported", '{"open": 10, "mode": {"auto": true}}')
    page = open_page(shared, "devices/valve-1")
    expect(page.locator(".twin")).to_contain_text("mode.auto")
    page.get_by_role("button", name="Change what is desired").click()
    editor = page.get_by_label("Desired, as JSON")
    editor.fill('{"open": 50')
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert").filter(has_text="not JSON yet")).to_be_visible()

    change(shared, "PATCH", "/devices/valve-1/twin", {"limit": 90})  # somebody else is faster
    editor.fill('{"open": 50}')
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert").filter(has_text="changed meanwhile: it is version 1")).to_be_visible()
    assert shared.get("/api/v1/devices/valve-1/twin")["desired"] == {"limit": 90}
    editor.fill('{"limit": 90, "open": 50}')
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".twin tr", has_text="open")).to_contain_text("10 not yet as desired")
    publish(shared, "devices/valve-1/state/reported", '{"open": 50, "limit": 90}')
    expect(page.get_by_role("heading", name="Twin")).to_contain_text("as desired")
    assert shared.get("/api/v1/devices/valve-1/twin")["desired"] == {"limit": 90, "open": 50}


def test_one_command_for_many_shows_who_gets_it_and_what_became_of_each(
    shared: BridgeProcess, open_page: OpenPage
) -> None:
    page = open_page(shared, "commands")
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
    acts = [line["action"] for line in shared.get("/api/v1/audit")["audit"]]
    assert "POST /rollouts" in acts
    assert "POST /rollouts/preview" not in acts, "a preview changes nothing"


def test_a_dead_letter_is_read_and_replayed_and_dropped(shared: BridgeProcess, open_page: OpenPage) -> None:
    page = open_page(shared, "letters?device=press-1")
    expect(page.get_by_text("nothing was refused")).to_be_visible()
    publish(shared, "devices/press-1/telemetry", "pressure=12")
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
    letter.get_by_role("button", name="Drop it for good?").click()
    expect(page.get_by_text("nothing was refused")).to_be_visible()
    assert shared.get("/api/v1/dead-letters?device=press-1")["dead_letters"] == []


def test_a_profile_s_commands_are_a_form_that_checks(shared: BridgeProcess, open_page: OpenPage) -> None:
    publish(shared, "devices/oven-7/telemetry", '{"t": 4.2}')
    page = open_page(shared, "devices/oven-7")
    minutes = page.get_by_label("minutes")
    for wrong in ("", "0", "61", "2.5"):
        minutes.fill(wrong)
        page.get_by_role("button", name="Send", exact=True).click()
        assert not minutes.evaluate("field => field.validity.valid"), wrong
    minutes.fill("10")
    page.get_by_label("fan").select_option("no")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("li[data-command]")).to_contain_text("defrost")
    (command,) = shared.get("/api/v1/commands?device=oven-7")["commands"]
    assert command["args"] == {"minutes": 10, "fan": False}


def test_a_field_is_looked_at_over_a_minute_and_over_a_month_and_more_closely(
    shared: BridgeProcess, open_page: OpenPage
) -> None:
    now = time.time()
    month = [{"ts": now - 3600 * hour, "id": f"past-{hour}", "power": 100 + hour % 24} for hour in range(700, 0, -1)]
    for start in range(0, len(month), 350):
        publish(shared, "devices/oven-7/telemetry", json.dumps(month[start : start + 350]))
    publish(shared, "devices/oven-7/telemetry", json.dumps({"ts": now, "power": 150, "door": False}))
    series = f"/api/v1/devices/oven-7/telemetry/series?field=power&since={now - 2_500_000}"
    until(lambda: len(shared.get(series)["ts"]) > 300, "the rollups", 60)
    page = open_page(shared, "devices/oven-7")
    page.get_by_role("button", name="power", exact=True).click()
    sources = {}
    for title, seconds in RANGES.items():
        with page.expect_response(lambda answer: "/telemetry/series" in answer.url and "power" in answer.url) as asked:
            page.get_by_role("button", name=title, exact=True).click()
        answer = asked.value.json()
        assert all(ts >= now - seconds - 7200 for ts in answer["ts"])
        sources[title] = answer["source"]
    assert sources["1 min"] == sources["6 h"] == "readings"
    assert "readings" not in (sources["7 d"], sources["30 d"])
    expect(page.get_by_role("button", name="30 d", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".source")).to_contain_text("701 readings")

    whole = points(page)
    plot = page.locator(".plot.big .u-over")
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60, steps=3)
    page.mouse.up()
    expect(page.get_by_role("button", name="Back to now")).to_be_visible()
    until(lambda: 0 < points(page) < whole / 2, "the part that was marked", PATIENCE / 1000)
    page.get_by_role("button", name="Back to now").click()
    until(lambda: points(page) > whole / 2, "all of it again", PATIENCE / 1000)


def test_ten_thousand_devices_are_turned_over_page_by_page(shared: BridgeProcess, open_page: OpenPage) -> None:
    for start in range(0, 10_000, 1_000):
        lot = [{"device_id": f"lot-{n:05}", "tags": ["even"][n % 2 :]} for n in range(start, start + 1_000)]
        change(shared, "POST", "/registry", {"devices": lot})
    page = open_page(shared, "devices?search=lot-")
    rows = page.locator("tr[data-device]")
    first = rows.first
    expect(first).to_have_attribute("data-device", "lot-00000")
    took = []
    for n in range(1, 9):
        began = time.monotonic()
        page.get_by_role("button", name="Next").click()
        expect(first).to_have_attribute("data-device", f"lot-{50 * n:05}")
        took.append(time.monotonic() - began)
    print(f"another page of 10,000 devices: {min(took) * 1000:.0f} to {max(took) * 1000:.0f} ms")
    expect(rows).to_have_count(50)
    page.get_by_role("button", name="Back").click()
    expect(first).to_have_attribute("data-device", "lot-00350")


def test_devices_are_found_by_tag_profile_presence_and_name(shared: BridgeProcess, open_page: OpenPage) -> None:
    entry = {"device_id": "oven-7", "profile": "oven", "tags": ["pizza"], "metadata": {"name": "Pizza oven"}}
    change(shared, "POST", "/registry", {"devices": [entry]})
    page = open_page(shared, "devices")
    rows = page.locator("tr[data-device]")
    page.get_by_role("button", name="online").click()
    expect(rows).to_have_count(3)
    expect(rows.first.locator("svg.spark path")).to_be_visible()
    page.get_by_role("button", name="all").click()
    page.get_by_label("Profile").select_option("oven")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("Pizza oven")
    page.get_by_label("Profile").select_option("")
    page.get_by_label("Tag").fill("pizza")
    expect(rows).to_have_count(1)
    page.get_by_label("Search").fill("no such thing")
    expect(page.get_by_text("No device fits.")).to_be_visible()
    page.get_by_label("Search").fill("PIZZA")
    expect(rows).to_have_count(1)
    page.reload()  # what was looked for is in the address
    expect(rows).to_have_count(1)


def test_a_command_is_planned_and_taken_back(shared: BridgeProcess, open_page: OpenPage) -> None:
    page = open_page(shared, "commands")
    page.get_by_label("Who gets it").select_option("named")
    page.get_by_label("Devices").fill("oven-7")
    expect(page.locator(".preview")).to_contain_text("1 device")
    page.get_by_label("Name").fill("clean")
    page.get_by_label("When").select_option("again and again")
    page.get_by_label("Minute, hour").fill("61 2 * * *")
    page.get_by_label("Time zone").fill("Europe/Berlin")
    page.get_by_role("button", name="Plan it").click()
    expect(page.locator("form .trouble")).to_contain_text("61")
    page.get_by_label("Minute, hour").fill("30 2 * * *")
    page.get_by_role("button", name="Plan it").click()
    plan = page.locator("li[data-schedule]", has_text="clean")
    expect(plan).to_contain_text("active")
    expect(plan).to_contain_text("30 2 * * * Europe/Berlin")
    plan.locator("summary").click()
    expect(plan).to_contain_text("It has not run yet.")
    plan.get_by_role("button", name="Cancel it").click()
    plan.get_by_role("button", name="Really cancel it?").click()
    expect(plan).to_contain_text("cancelled")
    (status,) = [one["status"] for one in shared.get("/api/v1/schedules")["schedules"] if one["name"] == "clean"]
    assert status == "cancelled"


# ---------------------------------------------------------------------- that everybody can use it


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_and_everything_has_a_name(shared: BridgeProcess, open_page: OpenPage, scheme: str) -> None:
    page = open_page(shared, color_scheme=scheme)
    for place, sign in VIEWS.items():
        page.goto(shared.url(f"/#/{place}"))
        expect(page.locator(sign).first).to_be_visible()
        assert page.evaluate(UNREADABLE) == [], place
        assert page.evaluate(NAMELESS) == [], place


def test_it_fits_a_phone(shared: BridgeProcess, open_page: OpenPage) -> None:
    page = open_page(shared, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    for place, sign in VIEWS.items():
        page.goto(shared.url(f"/#/{place}"))
        expect(page.locator(sign).first).to_be_visible()
        page.evaluate("document.querySelector('#link span').textContent = 'Connection lost'")  # the longest
        # A phone's browser makes its window wider where something does not fit: so compare with the phone.
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, place
        button = page.get_by_role("button", name="Log out").bounding_box()
        assert button is not None
        assert button["x"] + button["width"] <= 360, "it can be reached"
