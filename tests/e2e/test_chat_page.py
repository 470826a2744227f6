"""The chat page in a browser: from the question to the feedback in a real Kafka, and its receipt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from examples.chat_page.server import build_app
from loopwright import AsyncLoopwright
from shared.adapters.kafka import KafkaLogReader
from shared.adapters.topic_admin import create_topics
from shared.events import FEEDBACK, Feedback, parse_union
from shared.kafka_connection import KafkaConnection
from tests import inference_app
from tests.access import make_keys
from tests.asgi_server import listening
from tests.e2e.browser import open_browser, set_color_scheme, set_screen_size, wait_until
from tests.integration.service_process import running

P = 6
NAMESPACE = "chat-page"
"""Other tests write anything to the topics without one."""


@dataclass(frozen=True)
class Page:
    """The page in the browser, and where it is served."""

    chrome: Chrome
    url: str

    def ask(self, question: str) -> None:
        """Ask, and return once the answer has a widget."""
        before = len(self.chrome.find_elements(By.TAG_NAME, "loopwright-feedback"))
        self.chrome.find_element(By.ID, "question").send_keys(question)
        self.chrome.find_element(By.CSS_SELECTOR, "#ask button").click()
        wait_until(self.chrome, lambda: len(self.widgets()) == before + 1, "a widget below the answer")

    def widgets(self) -> list[Any]:
        return self.chrome.find_elements(By.TAG_NAME, "loopwright-feedback")

    def part(self, widget: Any, selector: str) -> Any:
        return widget.shadow_root.find_element(By.CSS_SELECTOR, selector)

    def receipt(self) -> str:
        return " ".join(each.text for each in self.chrome.find_elements(By.CLASS_NAME, "receipt"))


@pytest.fixture(scope="module")
def served(kafka: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the page, with a feedback service that has API keys, and inference on the in-memory engine."""
    create_topics(KafkaConnection(kafka, NAMESPACE), P)
    folder = tmp_path_factory.mktemp("feedback")
    key = make_keys(folder / "keys.json", {"page": ["ingest", "read"]})["page"]
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "LOOPWRIGHT_NAMESPACE": NAMESPACE,
        "REDIS_URL": redis_url,
        "LOOPWRIGHT_PARTITIONS": str(P),
        "LOOPWRIGHT_PSEUDONYM_KEY": "a key for these tests only",
        "LOOPWRIGHT_API_KEYS": str(folder / "keys.json"),
    }
    app = inference_app.App(max_context=10_000)
    with running("feedback", folder, env) as feedback, inference_app.served(app) as inference:
        loop = AsyncLoopwright(feedback_url=str(feedback.http.base_url), api_key=key)
        chat = AsyncOpenAI(base_url=f"{inference}/v1", api_key="unused")
        with listening(build_app(chat, loop)) as url:
            yield url


@pytest.fixture(scope="module")
def page(served: str) -> Iterator[Page]:
    with open_browser() as chrome:
        chrome.get(served)
        yield Page(chrome, served)


def events_about(kafka: str, response_id: str) -> list[Feedback]:
    reader = KafkaLogReader(KafkaConnection(kafka, NAMESPACE), "test", ["feedback.events"])
    try:
        events: list[Feedback] = []
        while not reader.at_end():
            events += [parse_union(FEEDBACK, record.value) for record in reader.poll(0.2)]
        return [event for event in events if event.response_id == response_id]
    finally:
        reader.close()


@pytest.mark.timeout(240)
def test_correction_in_the_page_is_in_kafka_and_has_a_receipt(page: Page, kafka: str) -> None:
    page.ask("Who founded Pellworth?")
    (widget,) = page.widgets()
    response_id = widget.get_attribute("response-id")
    assert response_id.startswith("chatcmpl-")
    page.part(widget, "#down").click()
    page.part(widget, "#text").send_keys("Pellworth was founded by Orla Fenwick.")
    page.part(widget, "#send").click()
    wait_until(page.chrome, lambda: "Your answer was sent" in page.part(widget, "span").text, "thanks")
    wait_until(page.chrome, lambda: page.receipt().startswith("Receipt: pending."), "the receipt")
    events = events_about(kafka, response_id)
    assert [(event.kind, event.value) for event in events] == [
        ("thumbs", "down"),
        ("correction", "Pellworth was founded by Orla Fenwick."),
    ]
    assert len({event.user_id for event in events}) == 1, "the page's server knows the visitor"


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1000, "light")])
def test_page_fits_and_loads_nothing_from_elsewhere(page: Page, width: int, scheme: str) -> None:
    set_screen_size(page.chrome, width, 720)
    set_color_scheme(page.chrome, scheme)
    page.ask("Another question, with a_very_long_word_" + "x" * 200)
    assert page.chrome.execute_script("return document.documentElement.scrollWidth") <= width
    severe = [entry["message"] for entry in page.chrome.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []


def test_other_pages_and_other_visitors_are_kept_out(served: str) -> None:
    body = {"response_id": "r", "event_id": "e", "kind": "thumbs", "value": "up"}
    with httpx.Client(base_url=served) as http:
        assert http.post("/v1/feedback", json=body).status_code == 422, "no visitor"
        assert http.get("/", headers={"Host": "evil.example"}).status_code == 400
        cookie = http.get("/").headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
