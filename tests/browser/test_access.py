"""Who may come in, what they find there, and what an admin sees to."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.acceptance.clients import Device
from tests.acceptance.process import BridgeProcess
from tests.browser.conftest import ADMIN, PATIENCE, OpenPage
from tests.browser.operator import publish

pytestmark = pytest.mark.browser

expect.set_options(timeout=PATIENCE)


def test_a_token_is_shown_once_its_viewer_only_looks_and_it_ends_when_it_is_revoked(
    shared: BridgeProcess, open_page: OpenPage
) -> None:
    admin = open_page(shared, "admin/tokens")
    admin.get_by_label("Name").fill("screen")
    admin.get_by_role("button", name="Make").click()
    made = admin.get_by_label("The token of screen")
    expect(made).to_be_focused()
    token = made.input_value()
    row = admin.locator("tbody tr", has_text="screen")
    expect(row).to_contain_text("viewer")
    admin.reload()
    expect(row).to_be_visible()
    expect(made).to_have_count(0)
    assert token not in admin.content()

    page = open_page(shared, "devices/sim-0001", token=None)
    page.get_by_label("Token").fill("guessed")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="not good")).to_be_visible()
    page.get_by_label("Token").fill(token)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="sim-0001")).to_be_visible()
    expect(page.get_by_text("screen · viewer")).to_be_visible()
    expect(page.get_by_role("heading", name="Presence")).to_be_visible()
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert page.evaluate("document.cookie") == ""
    expect(page.get_by_role("link", name="Admin")).to_have_count(0)
    # Nothing is offered that would be refused: what is there only looks.
    for place, sign in (("devices/sim-0001", ".plot.big canvas"), ("commands", "h2"), ("letters", "h1")):
        page.goto(shared.url(f"/#/{place}"))
        expect(page.locator(sign).first).to_be_visible()
        for word in ("Send", "Send to these devices", "Change what is desired", "Replay", "Choose all shown"):
            expect(page.get_by_role("button", name=word, exact=True)).to_have_count(0)
    page.goto(shared.url("/#/admin/tokens"))
    expect(page.get_by_text("This needs the role admin")).to_be_visible()

    row.get_by_role("button", name="Revoke").click()
    row.get_by_role("button", name="Revoke it now?").click()
    expect(row).to_contain_text("revoked")
    page.reload()
    expect(page.get_by_label("Token")).to_be_visible()


def test_who_logs_out_is_out(shared: BridgeProcess, open_page: OpenPage) -> None:
    page = open_page(shared, token=None)
    page.get_by_label("Token").fill(ADMIN)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("link", name="Admin")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    assert page.context.cookies() == []
    page.goto(shared.url("/#/devices"))
    page.reload()
    expect(page.get_by_label("Token")).to_be_visible()
    assert not page.locator("tr[data-device]").count()


def test_who_guesses_is_locked_out_and_told_so(shared: BridgeProcess, open_page: OpenPage) -> None:
    page = open_page(shared, token=None, extra_http_headers={"X-Forwarded-For": "192.0.2.7"})
    trouble = page.get_by_role("alert").filter(has_text="token")
    for _ in range(3):
        page.get_by_label("Token").fill("guessed")
        with page.expect_response("**/api/v1/session") as answer:
            page.get_by_role("button", name="Log in").click()
        assert answer.value.status == 401
        expect(trouble).to_contain_text("not good")
    page.get_by_label("Token").fill(ADMIN)
    page.get_by_role("button", name="Log in").click()
    expect(trouble).to_contain_text("too many wrong tokens")


def test_a_new_device_waits_until_it_is_approved_or_deleted(shared: BridgeProcess, open_page: OpenPage) -> None:
    for device in ("new-1", "new-2"):
        publish(shared, f"devices/{device}/telemetry", '{"t": 1}')
    page = open_page(shared)
    page.get_by_role("listitem").filter(has_text="New devices wait").get_by_role("link").click()
    one, other = page.locator("tr", has_text="new-1"), page.locator("tr", has_text="new-2")
    one.get_by_role("button", name="Approve").click()
    expect(page.locator("#toasts")).to_contain_text("new-1 may take part")
    other.get_by_role("button", name="Delete").click()
    other.get_by_role("button", name="Delete it?").click()
    expect(page.locator("#toasts")).to_contain_text("new-2 is deleted")
    expect(page.get_by_text("No device waits.")).to_be_visible()
    publish(shared, "devices/new-1/telemetry", '{"t": 2}')
    page.goto(shared.url("/#/devices/new-1"))
    expect(page.locator(".messages")).to_contain_text("t 2")

    page.goto(shared.url("/#/admin"))
    page.get_by_label("Device id").fill("new-3")
    page.get_by_label("Tags").fill("hall-1 spare")
    page.get_by_role("button", name="Register").click()
    expect(page.get_by_text("new-3 is registered")).to_be_visible()
    assert shared.get("/api/v1/registry/new-3")["tags"] == ["hall-1", "spare"]
    page.goto(shared.url("/#/admin/audit"))
    expect(page.locator("tbody")).to_contain_text("deleted a device")
    expect(page.locator("tbody tr").first).to_contain_text("http.token")


def test_a_device_s_token_is_replaced_by_another_and_revoked(shared: BridgeProcess, open_page: OpenPage) -> None:
    page = open_page(shared, "admin")
    page.get_by_label("Device id").fill("meter-1")
    page.get_by_role("button", name="Register").click()
    page.get_by_role("link", name="meter-1").click()
    expect(page.get_by_text("None is issued.")).to_be_visible()
    made = page.get_by_label("The token of meter-1")
    rows = page.locator("tbody tr", has=page.get_by_role("button", name="Revoke"))
    tokens = []
    for number in (1, 2):
        page.get_by_role("button", name="Issue a token").click()
        expect(rows).to_have_count(number)
        expect(made).to_be_focused()
        tokens.append(made.input_value())

    def let_in(token: str) -> bool:
        with Device(shared, "meter-1", username="meter-1", password=token) as device:
            return device.refused is None

    assert [let_in(token) for token in (*tokens, "guessed")] == [True, True, False]
    page.reload()
    expect(rows).to_have_count(2)
    expect(made).to_have_count(0)
    assert not any(token in page.content() for token in tokens)
    rows.first.get_by_role("button", name="Revoke").click()
    rows.first.get_by_role("button", name="Revoke it now?").click()
    expect(rows).to_have_count(1)
    assert [let_in(token) for token in tokens] == [False, True]
    page.goto(shared.url("/#/admin/audit"))
    expect(page.locator("tbody")).to_contain_text("revoked a credential")
    expect(page.locator("tbody")).to_contain_text("issued a credential")


def test_settings_are_shown_without_their_secrets(shared: BridgeProcess, open_page: OpenPage) -> None:
    page = open_page(shared, "admin/settings")
    page.get_by_label("Search").fill("http.token")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody tr")).to_contain_text("bridge.toml")
    assert ADMIN not in page.content()
    page.get_by_label("Search").fill("")
    page.get_by_label("only what is not the default").check()
    expect(page.locator("tbody")).to_contain_text("registry.unknown")
    assert page.locator("tbody tr", has_text="default").filter(has_not_text="profile").count() == 0
