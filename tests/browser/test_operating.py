"""What an operator does in the course of a day: looks back, looks closer, hands in again, calls off."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, expect

from tests.acceptance.clients import Device
from tests.acceptance.process import BridgeProcess
from tests.browser.conftest import PATIENCE, OpenPage
from tests.browser.operator import change, publish
from tests.waiting import until

pytestmark = pytest.mark.browser

expect.set_options(timeout=PATIENCE)


def test_letters_of_a_device_that_was_not_known_are_handed_in_together(
    shared: BridgeProcess, open_page: OpenPage
) -> None:
    for number in range(3):
        publish(shared, "devices/scale-1/telemetry", f'{{"weight": {number}}}')
    publish(shared, "devices/scale-1/telemetry", "heavy")
    page = open_page(shared, "letters?device=scale-1")
    letters = page.locator("li[data-letter]")
    expect(letters).to_have_count(4)
    change(shared, "POST", "/registry", {"devices": [{"device_id": "scale-1"}]})
    page.get_by_role("button", name="Choose all shown").click()
    page.get_by_role("button", name="Replay 4").click()
    expect(page.locator("#toasts")).to_contain_text("3 replayed, 1 refused again")
    expect(letters).to_have_count(1)
    expect(letters).to_contain_text("not json")
    letters.get_by_role("link", name="scale-1").click()
    expect(page.locator(".messages > li")).to_have_count(3)


def test_a_rollout_is_stopped_on_its_way(shared: BridgeProcess, open_page: OpenPage) -> None:
    page = open_page(shared, "commands")
    page.get_by_label("Who gets it").select_option("named")
    page.get_by_label("Devices").fill("nobody-1 press-1 bell-1")
    expect(page.locator(".preview")).to_contain_text("3 devices")
    page.get_by_label("Name").fill("open")
    page.get_by_label("At once").fill("2")
    page.get_by_role("button", name="Send to these devices").click()
    page.get_by_role("button", name="Stop it").click()
    time.sleep(1.5)  # the page asks how far it is every second: the question stays
    page.get_by_role("button", name="Really stop it?").click()
    expect(page.locator(".head")).to_contain_text("cancelled")
    expect(page.get_by_role("button", name="Stop it")).to_have_count(0)
    expect(page.locator(".legend")).to_contain_text("2 cancelled")
    (rollout, *_) = shared.get("/api/v1/rollouts?limit=1")["rollouts"]
    assert (rollout["name"], rollout["status"]) == ("open", "cancelled")
    assert shared.get("/api/v1/commands?device=press-1&status=queued")["commands"] == []


def test_what_a_schedule_has_done_leads_to_what_became_of_it(shared: BridgeProcess, open_page: OpenPage) -> None:
    at = datetime.fromtimestamp(time.time() + 0.5, UTC).isoformat()
    change(shared, "POST", "/schedules", {"name": "chime", "target": {"devices": ["sim-0001"]}, "at": at, "id": "noon"})
    schedules = "/api/v1/schedules?limit=1"
    until(lambda: shared.get(schedules)["schedules"][0]["status"] == "done", "the schedule to be over", 30)
    page = open_page(shared, "commands")
    plan = page.locator("li[data-schedule]", has_text="chime")
    plan.locator("summary").click()
    expect(plan).to_contain_text("To sim-0001")
    expect(plan.locator("ol li")).to_have_count(1)
    expect(plan.locator("ol li")).to_contain_text("started")
    plan.get_by_role("link", name="its rollout").click()
    expect(page.get_by_role("heading", name="chime")).to_be_visible()
    expect(page.locator("li[data-command]")).to_contain_text("sim-0001")


def test_when_a_device_was_there_is_a_line_and_a_list(shared: BridgeProcess, open_page: OpenPage) -> None:
    page = open_page(shared, "devices/bell-1")
    changes = page.locator(".changes li")
    with Device(shared, "bell-1") as bell:
        bell.subscribe("devices/bell-1/command/request", 1)
        expect(changes.first).to_contain_text("online")
        expect(page.locator(".timeline i").last).to_have_class("ok online")
    expect(changes.first).to_contain_text("offline")
    expect(changes.first).to_contain_text("disconnect")
    expect(page.locator(".timeline i.online")).to_have_count(1)
    assert "Online" in (page.locator(".timeline").get_attribute("aria-label") or "")


def test_a_plot_is_looked_into_without_a_mouse(shared: BridgeProcess, open_page: OpenPage) -> None:
    page = open_page(shared, "devices/sim-0001")
    expect(page.locator(".plot.big canvas")).to_be_visible()
    page.get_by_role("button", name="1 h", exact=True).click()
    now = time.time()
    since, until_ = pressed(page, "Closer")
    assert until_ - since == pytest.approx(1800, abs=1)
    assert until_ == pytest.approx(now, abs=30), "the latest half"
    closer = pressed(page, "Closer")
    assert closer[1] - closer[0] == pytest.approx(900, abs=1)
    further = pressed(page, "Further away")
    assert further == pytest.approx((since, until_), abs=1)
    earlier = pressed(page, "Earlier")
    assert earlier == pytest.approx((since - 900, until_ - 900), abs=1)
    assert pressed(page, "Later") == pytest.approx((since, until_), abs=1)
    expect(page.get_by_role("button", name="Back to now")).to_be_visible()
    page.get_by_role("button", name="Back to now").press("Enter")
    expect(page.get_by_role("button", name="1 h", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="Back to now")).to_be_hidden()


def pressed(page: Page, name: str) -> tuple[float, float]:
    """The times that are shown after a button is pressed."""
    with page.expect_request(lambda asked: "/telemetry/series" in asked.url and "until=" in asked.url) as request:
        page.get_by_role("button", name=name, exact=True).press("Enter")
    query = parse_qs(urlsplit(request.value.url).query)
    return float(query["since"][0]), float(query["until"][0])
