"""The feedback widget in a browser, from the click to the receipt, on the real feedback service."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from starlette.responses import HTMLResponse
from starlette.types import Receive, Scope, Send

from loopwright.browser_tokens import sign_browser_token
from services.feedback.browser_tokens import BrowserTokens
from shared.adapters.access import Access
from shared.adapters.clock import SystemClock
from shared.adapters.key_file import KeyFile
from shared.events import Feedback
from tests import feedback_server
from tests.access import make_keys
from tests.asgi_server import listening
from tests.e2e import widget_pages
from tests.e2e.browser import open_browser, set_color_scheme, set_screen_size, wait_until
from tests.e2e.widget_pages import WidgetPages
from tests.feedback_server import FeedbackApp

WIDGET = '<p>Pellworth was founded by Ada Fenwick.</p><loopwright-feedback response-id="{}" user-id="ann"{}>'
GERMAN = '{"up": "Gute Antwort", "question": "Was hätte sie sagen sollen?", "thumbs": "Danke."}'
PART = "document.querySelector('loopwright-feedback').shadowRoot.querySelector(arguments[0])"


@pytest.fixture(scope="module")
def pages() -> Iterator[WidgetPages]:
    with widget_pages.served() as running:
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chrome]:
    with open_browser() as chrome:
        yield chrome


class Widget:
    """One widget in the browser."""

    def __init__(self, chrome: Chrome, pages: WidgetPages, response_id: str, attributes: str = "") -> None:
        self.chrome = chrome
        self.pages = pages
        self.response_id = response_id
        set_screen_size(chrome, 1000, 700)
        set_color_scheme(chrome, "light")
        body = WIDGET.format(response_id, f" {attributes}")
        chrome.get(pages.page(f"/page/{response_id}", body))
        wait_until(chrome, lambda: self.run(f"return !!{PART}", "#up"), "the widget")

    def run(self, script: str, *arguments: object) -> Any:
        return self.chrome.execute_script(script, *arguments)

    def get(self, selector: str, name: str) -> Any:
        return self.run(f"return {PART}[arguments[1]]", selector, name)

    def click(self, selector: str) -> None:
        self.run(f"{PART}.click()", selector)

    def press(self, *keys: str) -> None:
        ActionChains(self.chrome).send_keys(*keys).perform()

    def focused(self) -> str:
        return str(self.run("return document.activeElement.shadowRoot?.activeElement?.id ?? ''"))

    def status(self) -> str:
        return str(self.get("span", "textContent"))

    def wait_for(self, text: str) -> None:
        wait_until(self.chrome, lambda: self.status() == text, text)

    def events(self) -> list[Feedback]:
        """Return the events about this response that are in the log."""
        assert self.pages.app is not None
        return [event for event in self.pages.app.events() if event.response_id == self.response_id]

    def statements(self) -> list[tuple[str, Any]]:
        return [(event.kind, event.value) for event in self.events()]

    def pressed(self) -> tuple[str, str]:
        return self.get("#up", "ariaPressed"), self.get("#down", "ariaPressed")


def test_click_is_durable_and_has_a_receipt(chromium: Chrome, pages: WidgetPages) -> None:
    widget = Widget(chromium, pages, "w-click")
    widget.run("window.seen = [];addEventListener('loopwright-feedback', ({detail}) => seen.push(detail))")
    widget.click("#up")
    widget.wait_for("Thank you.")
    (event,) = widget.events()
    assert (event.kind, event.value, widget.pressed()) == ("thumbs", "up", ("true", "false"))
    assert event.user_id.startswith("u_")
    (detail,) = widget.run("return seen")
    assert (detail["event_id"], detail["json"]["status"]) == (event.event_id, "accepted")
    assert pages.app is not None
    receipt = httpx.get(f"{pages.app.url}/v1/feedback/w-click/{event.event_id}").json()
    assert receipt["outcome"] == "pending"


def test_disliked_answer_is_corrected_in_place(chromium: Chrome, pages: WidgetPages) -> None:
    widget = Widget(chromium, pages, "w-correct")
    widget.click("#down")
    assert widget.get("form", "hidden") is False
    assert widget.focused() == "text"
    widget.press("  It was founded by ", "Orla Fenwick. ")
    widget.click("#send")
    widget.wait_for("Thank you. Your answer was sent.")
    assert widget.statements() == [("thumbs", "down"), ("correction", "It was founded by Orla Fenwick.")]
    assert (widget.get("form", "hidden"), widget.focused()) == (True, "suggest")
    widget.click("#suggest")
    widget.press(" In 1066.")
    ActionChains(chromium).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    wait_until(chromium, lambda: len(widget.events()) == 3, "the edited correction")
    assert widget.statements()[2] == ("correction", "It was founded by Orla Fenwick.  In 1066.")
    assert len({event.event_id for event in widget.events()}) == 3


def test_empty_correction_is_not_sent(chromium: Chrome, pages: WidgetPages) -> None:
    widget = Widget(chromium, pages, "w-empty")
    widget.click("#suggest")
    widget.press("   ")
    widget.click("#send")
    assert widget.get("form", "hidden") is False
    assert widget.events() == []


def test_changed_mind_supersedes_or_retracts(chromium: Chrome, pages: WidgetPages) -> None:
    widget = Widget(chromium, pages, "w-mind")
    widget.click("#down")
    widget.click("#up")
    widget.wait_for("Thank you.")
    wait_until(
        chromium, lambda: widget.statements()[-1:] == [("thumbs", "up")], "the last choice is the last event"
    )
    assert widget.pressed() == ("true", "false")
    up = widget.events()[-1]
    widget.click("#up")
    widget.wait_for("Feedback withdrawn.")
    assert widget.statements()[-1] == ("retract", up.event_id)
    assert widget.pressed() == ("false", "false")
    widget.click("#up")
    widget.wait_for("Thank you.")
    assert widget.events()[-1].event_id != up.event_id


def test_double_click_sends_one_event(chromium: Chrome, pages: WidgetPages) -> None:
    widget = Widget(chromium, pages, "w-double")
    widget.run(f"const button = {PART}; for (let i = 0; i < 5; i++) button.click()", "#up")
    widget.wait_for("Thank you.")
    assert widget.statements() == [("thumbs", "up")]


@pytest.mark.parametrize(("faults", "again"), [(4, "#retry"), (4, "#up"), (2, None)])
def test_event_keeps_its_id_over_failures(
    chromium: Chrome, pages: WidgetPages, faults: int, again: str | None
) -> None:
    widget = Widget(chromium, pages, f"w-fault-{faults}-{str(again)[1:]}")
    widget.run(
        "window.sent = []; const original = window.fetch;"
        "window.fetch = (url, init) => (sent.push(JSON.parse(init.body).event_id), original(url, init))"
    )
    pages.statuses.extend([503] * faults)
    widget.click("#up")
    if again is not None:
        widget.wait_for("Your feedback was not sent.")
        assert widget.get("#retry", "hidden") is False
        assert widget.events() == []
        widget.click(again)
    widget.wait_for("Thank you.")
    assert widget.get("#retry", "hidden") is True
    (event,) = widget.events()
    assert widget.run("return sent") == [event.event_id] * (faults + 1)


def test_refusal_is_shown_and_reported_to_the_page(chromium: Chrome, pages: WidgetPages) -> None:
    widget = Widget(chromium, pages, "w-refused")
    widget.run("addEventListener('loopwright-error', ({detail}) => { window.failure = detail })")
    pages.statuses.append(403)
    widget.click("#up")
    widget.wait_for("Your feedback was not accepted.")
    failure = widget.run("return failure")
    assert (failure["status"], failure["json"]["code"], failure["kind"]) == (403, "fault", "thumbs")


def test_everything_works_by_keyboard(chromium: Chrome, pages: WidgetPages) -> None:
    widget = Widget(chromium, pages, "w-keys")
    widget.press(Keys.TAB)
    assert widget.focused() == "up"
    widget.press(Keys.SPACE)
    widget.wait_for("Thank you.")
    widget.press(Keys.TAB, Keys.TAB)
    assert widget.focused() == "suggest"
    widget.press(Keys.ENTER)
    assert widget.focused() == "text"
    widget.press(Keys.ESCAPE)
    assert (widget.focused(), widget.get("form", "hidden")) == ("suggest", True)
    widget.press(Keys.ENTER)
    widget.press("Orla Fenwick.", Keys.TAB, Keys.TAB)
    assert widget.focused() == "send"
    widget.press(Keys.ENTER)
    widget.wait_for("Thank you. Your answer was sent.")
    assert widget.statements() == [("thumbs", "up"), ("correction", "Orla Fenwick.")]


def test_screen_readers_get_roles_names_and_states(chromium: Chrome, pages: WidgetPages) -> None:
    widget = Widget(chromium, pages, "w-reader")
    widget.click("#down")
    wait_until(chromium, lambda: widget.status() == "Thank you.", "thanks")
    nodes = chromium.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    tree = {(value(node, "role"), value(node, "name")): states(node) for node in nodes if not node["ignored"]}
    assert tree["button", "Good answer"]["pressed"] == "false"
    assert tree["button", "Bad answer"]["pressed"] == "true"
    assert tree["button", "Suggest a better answer"]["expanded"] is True
    assert tree["textbox", "What should it have said?"]["focused"] is True
    assert ("group", "Feedback on this answer") in tree
    assert tree["status", ""]["live"] == "polite"
    assert {("button", "Send"), ("button", "Cancel")} <= set(tree)


def value(node: dict[str, Any], name: str) -> str:
    return str(node.get(name, {}).get("value", ""))


def states(node: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each["value"].get("value") for each in node.get("properties", [])}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_in_both_schemes(chromium: Chrome, pages: WidgetPages, scheme: str) -> None:
    widget = Widget(chromium, pages, f"w-contrast-{scheme}")
    set_color_scheme(chromium, scheme)
    widget.click("#suggest")
    page = color(widget.run("return getComputedStyle(document.body).backgroundColor"))
    assert (luminance(page) < 0.5) == (scheme == "dark")
    for selector in ("#up svg", "label", "textarea", "#cancel", "span"):
        name = "stroke" if "svg" in selector else "color"
        assert contrast(color(style(widget, selector, name)), page) >= 4.5, selector
    assert (
        contrast(color(style(widget, "#send", "color")), color(style(widget, "#send", "background-color")))
        >= 4.5
    )
    assert contrast(color(style(widget, "textarea", "border-top-color")), page) >= 3


def style(widget: Widget, selector: str, name: str) -> str:
    return str(widget.run(f"return getComputedStyle({PART}).getPropertyValue(arguments[1])", selector, name))


def color(text: str) -> tuple[float, ...]:
    assert text.startswith("rgb("), f"{text} is not opaque"
    return tuple(float(part) / 255 for part in re.findall(r"[\d.]+", text))


def luminance(rgb: tuple[float, ...]) -> float:
    """Return the relative luminance of WCAG 2.2."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Return the contrast ratio of WCAG 2.2."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("preference", "moves"), [("reduce", False), ("no-preference", True)])
def test_nothing_moves_if_the_user_prefers_so(
    chromium: Chrome, pages: WidgetPages, preference: str, moves: bool
) -> None:
    widget = Widget(chromium, pages, f"w-motion-{preference}")
    feature = {"name": "prefers-reduced-motion", "value": preference}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    widget.click("#suggest")
    assert (style(widget, "form", "animation-name") != "none") is moves
    assert (style(widget, "#up", "transition-duration") != "0s") is moves


@pytest.mark.parametrize("width", [280, 390])
def test_widget_fits_a_narrow_page(chromium: Chrome, pages: WidgetPages, width: int) -> None:
    widget = Widget(chromium, pages, f"w-narrow-{width}")
    set_screen_size(chromium, width, 700)
    widget.click("#down")
    widget.wait_for("Thank you.")
    assert widget.run("return document.documentElement.scrollWidth") <= width


def test_texts_are_replaced_and_shown_as_text(chromium: Chrome, pages: WidgetPages) -> None:
    widget = Widget(chromium, pages, "w-german", f"texts='{GERMAN}'")
    assert (widget.get("#up", "ariaLabel"), widget.get("#up", "title")) == ("Gute Antwort", "Gute Antwort")
    assert widget.get("#down", "ariaLabel") == "Bad answer", "English stands in"
    widget.click("#up")
    widget.wait_for("Danke.")
    widget.run(
        "arguments[0]; document.querySelector('loopwright-feedback').setAttribute('texts', arguments[0])",
        '{"question": "<img src=x onerror=alert(1)>"}',
    )
    assert widget.get("label", "childElementCount") == 0


def test_another_response_starts_over(chromium: Chrome, pages: WidgetPages) -> None:
    widget = Widget(chromium, pages, "w-first")
    widget.click("#up")
    widget.wait_for("Thank you.")
    widget.run("document.querySelector('loopwright-feedback').setAttribute('response-id', 'w-second')")
    assert (widget.pressed(), widget.status()) == (("false", "false"), "")
    widget.response_id = "w-second"
    widget.click("#up")
    widget.wait_for("Thank you.")
    assert widget.statements() == [("thumbs", "up")]


def test_strict_content_policy_is_enough(chromium: Chrome, pages: WidgetPages) -> None:
    widget = Widget(chromium, pages, "w-policy")
    widget.run(
        "window.violations = [];"
        "addEventListener('securitypolicyviolation', (event) => violations.push(event.violatedDirective))"
    )
    widget.click("#suggest")
    assert style(widget, "form", "display") == "grid", "the style is applied"
    severe = [
        entry["message"] for entry in chromium.get_log("browser") if "Content Security" in entry["message"]
    ]
    assert severe == []
    assert widget.run("return violations") == []


# --- on pages of another origin -----------------------------------------------------------------------------------

TOKEN_KEY = "the token key of this test, which is long"
PAGE = """<!doctype html><html lang=en><meta charset=utf-8><title>App</title>
<script src="{url}/v1/widget.js" defer></script>
<body><loopwright-feedback response-id="{response_id}" user-id="ann" token="{token}"></loopwright-feedback>"""


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[tuple[FeedbackApp, dict[str, str], str]]:
    """The feedback service with API keys, and an app on another origin: service, pages by path, origin of the app."""
    pages: dict[str, str] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await HTMLResponse(pages.get(scope.get("path", ""), ""))(scope, receive, send)

    make_keys(tmp_path / "keys.json", {"app": ["ingest"]})
    clock = SystemClock()
    tokens = BrowserTokens(TOKEN_KEY.encode(), clock)
    with listening(app) as origin:
        access = Access(KeyFile(tmp_path / "keys.json", clock), tokens=tokens, origins=[origin], clock=clock)
        with feedback_server.served(access=access, tokens=tokens) as service:
            yield service, pages, origin


def test_page_of_another_origin_sends_with_a_token(
    chromium: Chrome, foreign: tuple[FeedbackApp, dict[str, str], str]
) -> None:
    """And shows the refusal where the token is for another response, or missing."""
    service, pages, origin = foreign
    tokens = {
        "right": sign_browser_token("f-right", key=TOKEN_KEY, user_id="ann"),
        "other": sign_browser_token("f-else", key=TOKEN_KEY, user_id="ann"),
        "none": "",
    }
    for name, token in tokens.items():
        pages[f"/{name}"] = PAGE.format(url=service.url, response_id=f"f-{name}", token=token)
        chromium.get(f"{origin}/{name}")
        wait_until(chromium, lambda: bool(chromium.execute_script(f"return !!{PART}", "#up")), "the widget")
        chromium.execute_script(f"{PART}.click()", "#up")
        wait_until(
            chromium, lambda: bool(chromium.execute_script(f"return {PART}.textContent", "span")), "a message"
        )
        message = chromium.execute_script(f"return {PART}.textContent", "span")
        assert (message == "Thank you.") == (name == "right"), (name, message)
    assert [event.response_id for event in service.events()] == ["f-right"]
