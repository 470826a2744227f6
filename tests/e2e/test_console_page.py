"""The console's page as an operator has it: in a browser, on a console beside real Kafka and Redis."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis import Redis
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By

from deploy.local.processes import end
from shared.adapters import redis_keys
from shared.adapters.kafka import KafkaLogReader, KafkaPublisher
from shared.adapters.redis import RedisCache
from shared.adapters.topic_admin import create_topics
from shared.commands import COMMAND, Command, CommandResult
from shared.events import LogRecord, Outcome, OutcomeKind, parse_union
from shared.records import Output
from shared.versions import Figure, GateReport, ModelVersion, RolloutRecord, VersionRef
from tests.e2e.browser import hosts_asked, opened, prefers, until, wide
from tests.integration.service_process import Service, running

P = 6
LINE = f"t{secrets.token_hex(5)}"
"""A line of these tests alone, also on a broker that others use."""
NOW = datetime(2026, 3, 4, tzinfo=UTC)
BASE = VersionRef(version=f"{LINE}@base-00000000", kind="base", digest="0" * 64)
V1 = VersionRef(version=f"{LINE}@v1-11111111", kind="lora", uri="v1", digest="1" * 64)
SOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.fixture(scope="module")
def env(kafka: str, redis_url: str) -> dict[str, str]:
    create_topics(kafka, P)
    return {
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "REDIS_URL": redis_url,
        "LOOPWRIGHT_PARTITIONS": str(P),
        "LOOPWRIGHT_LINE": LINE,
    }


@pytest.fixture(scope="module")
def console(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running("console", tmp_path_factory.mktemp("console"), env) as service:
        yield service


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chrome]:
    with opened() as chrome:
        yield chrome


@pytest.fixture
def page(console: Service, chromium: Chrome) -> Chrome:
    """The page, live, as whoever opens it for the first time finds it."""
    wide(chromium, 1440, 900)
    prefers(chromium, "light")
    visit(chromium, console)
    chromium.execute_script("localStorage.clear()")
    visit(chromium, console)
    return chromium


def visit(chrome: Chrome, console: Service) -> None:
    chrome.get(str(console.http.base_url))
    until(chrome, lambda: says(chrome, "headline") not in ("", "Reading the log"), "a headline")


def says(chrome: Chrome, part: str) -> str:
    return str(
        chrome.execute_script("return document.getElementById(arguments[0])?.innerText.trim() ?? ''", part)
    )


def put(kafka: str, service: str, topic: str, key: str, made: LogRecord) -> None:
    publisher = KafkaPublisher(kafka, service)
    publisher.publish(Output(topic, key.encode(), made.to_json())).result(10)
    publisher.close()


def decide(kafka: str, seq: int, stable: VersionRef, reason: str) -> None:
    action = "adopt_base" if stable is BASE else "promote"
    record = RolloutRecord(line=LINE, seq=seq, action=action, stable=stable, reason=reason, decided_at=NOW)
    put(kafka, "rollout", "model.rollout", LINE, record)


def announce(kafka: str, ref: VersionRef, number: int | None = None, gate: GateReport | None = None) -> None:
    version = ModelVersion(
        line=LINE, ref=ref, number=number, base=BASE.version, base_model="b", gate=gate, created_at=NOW
    )
    put(kafka, "trainer", "model.versions", ref.version, version)


def commands(kafka: str) -> list[Command]:
    reader = KafkaLogReader(kafka, "test", ["operator.commands"])
    try:
        read = []
        while not reader.at_end():
            read += [parse_union(COMMAND, record.value) for record in reader.poll(0.2)]
        return [command for command in read if command.line == LINE]
    finally:
        reader.close()


def test_before_anything_has_happened_the_page_says_what_will(page: Chrome) -> None:
    assert says(page, "serving").startswith("Nothing serves yet.")
    assert says(page, "versions").startswith("No version yet.")
    assert says(page, "rollout").startswith("No decision yet.")
    assert says(page, "run").startswith("No run lately.")


def test_the_page_follows_the_loop_without_being_loaded_again(
    page: Chrome, kafka: str, redis_url: str
) -> None:
    page.execute_script("window.stays = true")
    cache = RedisCache(redis_url)
    collected = {
        "usable": 118,
        "needed": 200,
        "users": 31,
        "users_needed": 20,
        "held": {"agreement: disputed": 9},
    }
    cache.put(redis_keys.collected(LINE), json.dumps(collected).encode(), ttl_s=600)
    announce(kafka, BASE)
    decide(kafka, 1, BASE, "the base serves first")
    until(page, lambda: BASE.version in says(page, "serving"), "the base serves")
    until(page, lambda: "118 of 200" in says(page, "threshold"), "the threshold")
    assert "agreement: disputed" in says(page, "threshold")
    for step, loss in ((40, 1.5), (80, 0.5)):
        run = {
            "run_id": "r-1",
            "stage": "train",
            "step": step,
            "steps": 160,
            "loss": loss,
            "tokens_per_s": 600,
            "eta_s": 90,
        }
        cache.put(redis_keys.run_progress(LINE), json.dumps(run).encode(), ttl_s=600)
        until(page, lambda now=f"{step} of 160": now in says(page, "run"), f"step {step}")
    until(page, lambda: page.find_elements(By.CSS_SELECTOR, "#run svg polyline"), "the loss as a line")
    figure = Figure(name="wins", n=61, value=0.83, low=0.72, high=0.9, baseline=0.03, bound=0.5, passed=True)
    gate = GateReport(
        verdict="passed", reasons=("better where it counts",), figures=(figure,), gated_against=BASE.version
    )
    announce(kafka, V1, 1, gate)
    decide(kafka, 2, V1, "v1 passed the gate")
    until(page, lambda: V1.version in says(page, "serving"), "v1 serves")
    assert "v1 passed the gate" in says(page, "serving")
    row = until(page, lambda: "wins" in (text := says(page, "versions")) and text, "the gate's figures")
    assert all(
        word in row for word in ("passed", "0.83", "0.72 to 0.90", "0.03", "61", "better where it counts")
    )
    outcome = Outcome(line=LINE, response_id="page-1", event_id="e", outcome=OutcomeKind.LATE, decided_at=NOW)
    put(kafka, "processor", "feedback.outcomes", "page-1", outcome)
    until(page, lambda: "came after the window" in says(page, "events"), "the outcome in the ledger")
    assert page.execute_script("return window.stays") is True


def test_nothing_is_asked_of_another_host_and_nothing_could_be(page: Chrome, console: Service) -> None:
    page.get_log("performance")
    visit(page, console)
    assert hosts_asked(page) == {urlsplit(str(console.http.base_url)).netloc}
    # The control: a page that tried would be stopped by the policy.
    stopped = page.execute_async_script(
        """
        const told = arguments[0];
        document.addEventListener("securitypolicyviolation", (e) => told(e.violatedDirective), { once: true });
        fetch("http://127.0.0.2:9/").catch(() => {});
        """
    )
    assert stopped == "connect-src"
    severe = [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert [message for message in severe if "127.0.0.2" not in message] == []


def test_dark_or_light_follows_the_system_until_somebody_chooses(page: Chrome, console: Service) -> None:
    def shown() -> tuple[str, bool]:
        theme = page.execute_script("return document.documentElement.dataset.theme")
        ground = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        return str(theme), sum(json.loads(ground.replace("rgb(", "[").replace(")", "]"))) < 200

    assert shown() == ("light", False)
    prefers(page, "dark")
    until(page, lambda: shown() == ("dark", True), "dark, as the system is now")
    page.find_element(By.XPATH, "//button[contains(., 'Dark or light')]").click()
    until(page, lambda: shown() == ("light", False), "light, as chosen")
    visit(page, console)
    assert shown() == ("light", False)


@pytest.mark.parametrize(("pixels", "high"), [(390, 844), (1440, 900)])
def test_it_fits_a_phone_and_a_desk(page: Chrome, console: Service, pixels: int, high: int) -> None:
    wide(page, pixels, high)
    visit(page, console)
    assert page.execute_script("return document.documentElement.scrollWidth") <= pixels
    drawings = page.find_elements(By.CSS_SELECTOR, "#loop svg")
    assert [drawing.is_displayed() for drawing in drawings] == [pixels > 720, pixels <= 720]
    # What cannot be seen or spoken is of no use: the one that is shown tells itself in words.
    assert "Passed on so far" in str(drawings[0].get_attribute("aria-label"))


def test_a_command_is_given_by_keyboard_and_only_after_it_was_confirmed(page: Chrome, kafka: str) -> None:
    def press(*keys: str) -> None:
        ActionChains(page).send_keys(*keys).perform()

    def focused() -> str:
        return str(page.execute_script("return document.activeElement.innerText.trim()"))

    page.execute_script("document.body.focus()")
    until(page, lambda: press(Keys.TAB) or focused() == "Train now", "the button by Tab")
    press(Keys.ENTER)
    until(page, lambda: focused() == "Not now", "a question, with the harmless answer first")
    press(Keys.ESCAPE)
    until(page, lambda: not page.find_elements(By.CLASS_NAME, "confirm"), "the question gone")
    assert commands(kafka) == []
    page.find_element(By.XPATH, "//button[contains(., 'Train now')]").send_keys(Keys.ENTER)
    until(page, lambda: focused() == "Not now", "the question again")
    press(Keys.TAB)
    until(page, lambda: focused() == "Start the run", "the other answer")
    press(Keys.ENTER)
    (given,) = until(page, lambda: commands(kafka), "the command in the log")
    assert given.kind == "train_now"
    result = CommandResult(
        line=LINE,
        command_id=given.command_id,
        status="refused",
        message="nothing usable",
        executor="trainer",
        finished_at=NOW,
    )
    put(kafka, "trainer", "operator.results", given.command_id, result)
    body = page.find_element(By.TAG_NAME, "body")
    until(page, lambda: "train now: refused. nothing usable" in body.text, "what came of it")


def test_many_open_pages_read_no_more_than_one(page: Chrome, console: Service, redis_url: str) -> None:
    redis: Any = Redis.from_url(redis_url)

    def reads() -> int:
        return int(redis.info("commandstats")["cmdstat_get"]["calls"])

    def four_readings_take() -> float:
        before, began = reads(), time.monotonic()
        until(page, lambda: reads() >= before + 8, "four readings, of two keys each")
        return time.monotonic() - began

    alone = four_readings_take()
    first = page.current_window_handle
    for _ in range(5):
        page.switch_to.new_window("tab")
        visit(page, console)
    beside_five = four_readings_take()
    for handle in page.window_handles:
        if handle != first:
            page.switch_to.window(handle)
            page.close()
    page.switch_to.window(first)
    redis.close()
    assert beside_five > alone / 2


@pytest.mark.parametrize("transport", ["websocket", "polling"])
@pytest.mark.parametrize("header", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}])
def test_a_foreign_page_gets_no_socket(console: Service, transport: str, header: dict[str, str]) -> None:
    path = f"/_nicegui_ws/socket.io/?EIO=4&transport={transport}"
    upgrade = SOCKET if transport == "websocket" else {}
    assert console.http.get(path, headers=upgrade | header).status_code == 403
    assert console.http.get("/", headers=header).status_code == 403


def test_it_stops_in_order_while_a_page_is_open(
    env: dict[str, str], chromium: Chrome, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running("console", tmp_path_factory.mktemp("stops"), env) as service:
        visit(chromium, service)
        began = time.monotonic()
        end(service.child, seconds=20)
        assert (service.child.returncode, time.monotonic() - began < 15) == (0, True)
        assert "Traceback" not in service.log.read_text()
