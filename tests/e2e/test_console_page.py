"""The console's page in a browser, on a console with a real Kafka and Redis."""

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

from deploy.local.processes import terminate
from shared.adapters import redis_keys
from shared.adapters.kafka import KafkaLogReader, KafkaPublisher
from shared.adapters.redis import RedisCache
from shared.adapters.topic_admin import create_topics
from shared.commands import COMMAND, Command, CommandResult
from shared.events import LogRecord, Outcome, OutcomeKind, parse_union
from shared.kafka_connection import KafkaConnection
from shared.live_status import CollectedStatus, RunProgress
from shared.records import Output
from shared.versions import Figure, GateReport, ModelVersion, RolloutRecord, VersionRef
from tests.e2e.browser import open_browser, requested_hosts, set_color_scheme, set_screen_size, wait_until
from tests.integration.service_process import Service, running

P = 6
LINE = f"t{secrets.token_hex(5)}"
"""A line that only these tests use, even if they share the broker."""
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
    create_topics(KafkaConnection(kafka), P)
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
    with open_browser() as chrome:
        yield chrome


@pytest.fixture
def page(console: Service, chromium: Chrome) -> Chrome:
    """Return the page as it is when it is opened for the first time."""
    set_screen_size(chromium, 1440, 900)
    set_color_scheme(chromium, "light")
    visit(chromium, console)
    chromium.execute_script("localStorage.clear()")
    visit(chromium, console)
    return chromium


def visit(chrome: Chrome, console: Service) -> None:
    chrome.get(str(console.http.base_url))
    wait_until(chrome, lambda: text_of(chrome, "headline") not in ("", "Reading the log"), "a headline")


def text_of(chrome: Chrome, part: str) -> str:
    return str(
        chrome.execute_script("return document.getElementById(arguments[0])?.innerText.trim() ?? ''", part)
    )


def put(kafka: str, service: str, topic: str, key: str, record: LogRecord) -> None:
    publisher = KafkaPublisher(KafkaConnection(kafka), service)
    publisher.publish(Output(topic, key.encode(), record.to_json())).result(10)
    publisher.close()


def publish_rollout(kafka: str, seq: int, stable: VersionRef, reason: str) -> None:
    action = "adopt_base" if stable is BASE else "promote"
    record = RolloutRecord(line=LINE, seq=seq, action=action, stable=stable, reason=reason, decided_at=NOW)
    put(kafka, "rollout", "model.rollout", LINE, record)


def publish_version(
    kafka: str, ref: VersionRef, number: int | None = None, gate: GateReport | None = None
) -> None:
    version = ModelVersion(
        line=LINE, ref=ref, number=number, base=BASE.version, base_model="b", gate=gate, created_at=NOW
    )
    put(kafka, "trainer", "model.versions", ref.version, version)


def commands_of_line(kafka: str) -> list[Command]:
    reader = KafkaLogReader(KafkaConnection(kafka), "test", ["operator.commands"])
    try:
        commands = []
        while not reader.at_end():
            commands += [parse_union(COMMAND, record.value) for record in reader.poll(0.2)]
        return [command for command in commands if command.line == LINE]
    finally:
        reader.close()


def test_empty_page_says_what_will_appear(page: Chrome) -> None:
    assert text_of(page, "serving").startswith("No version is serving yet.")
    assert text_of(page, "versions").startswith("No versions yet.")
    assert text_of(page, "rollout").startswith("No decisions yet.")
    assert text_of(page, "run").startswith("No recent run.")


def test_page_follows_the_loop_without_a_reload(page: Chrome, kafka: str, redis_url: str) -> None:
    page.execute_script("window.stays = true")
    cache = RedisCache(redis_url)
    collected = CollectedStatus(
        usable=118,
        needed=200,
        users=31,
        users_needed=20,
        examples=240,
        held={"agreement: disputed": 9},
        batches=18,
        reason="118 of 200 usable examples",
        updated_at=datetime.now(UTC),
    )
    cache.put(redis_keys.collected(LINE), collected.to_json(), ttl_s=600)
    publish_version(kafka, BASE)
    publish_rollout(kafka, 1, BASE, "the base serves first")
    wait_until(page, lambda: BASE.version in text_of(page, "serving"), "the base serves")
    wait_until(page, lambda: "118 of 200" in text_of(page, "threshold"), "the threshold")
    assert "agreement: disputed" in text_of(page, "threshold")
    for step, loss in ((40, 1.5), (80, 0.5)):
        run = RunProgress(
            run_id="r-1",
            stage="training",
            step=step,
            steps=160,
            share=step / 160,
            loss=loss,
            tokens_per_s=600,
            eta_s=90,
            updated_at=datetime.now(UTC),
        )
        cache.put(redis_keys.run_progress(LINE), run.to_json(), ttl_s=600)
        wait_until(page, lambda steps=f"{step} of 160": steps in text_of(page, "run"), f"step {step}")
    wait_until(page, lambda: page.find_elements(By.CSS_SELECTOR, "#run svg polyline"), "the loss as a line")
    figure = Figure(name="wins", n=61, value=0.83, low=0.72, high=0.9, baseline=0.03, bound=0.5, passed=True)
    gate = GateReport(
        verdict="passed", reasons=("better where it counts",), figures=(figure,), gated_against=BASE.version
    )
    publish_version(kafka, V1, 1, gate)
    publish_rollout(kafka, 2, V1, "v1 passed the gate")
    wait_until(page, lambda: V1.version in text_of(page, "serving"), "v1 serves")
    assert "v1 passed the gate" in text_of(page, "serving")
    row = wait_until(
        page, lambda: "wins" in (text := text_of(page, "versions")) and text, "the gate's figures"
    )
    assert all(
        word in row for word in ("passed", "0.83", "0.72 to 0.90", "0.03", "61", "better where it counts")
    )
    outcome = Outcome(line=LINE, response_id="page-1", event_id="e", outcome=OutcomeKind.LATE, decided_at=NOW)
    put(kafka, "processor", "feedback.outcomes", "page-1", outcome)
    wait_until(
        page,
        lambda: "Arrived after the feedback window" in text_of(page, "feedback"),
        "the outcome in the ledger",
    )
    assert page.execute_script("return window.stays") is True


def test_page_requests_nothing_from_other_hosts(page: Chrome, console: Service) -> None:
    page.get_log("performance")
    visit(page, console)
    assert requested_hosts(page) == {urlsplit(str(console.http.base_url)).netloc}
    # Negative control: the policy stops a page that tries.
    violated = page.execute_async_script(
        """
        const done = arguments[0];
        document.addEventListener("securitypolicyviolation", (e) => done(e.violatedDirective), { once: true });
        fetch("http://127.0.0.2:9/").catch(() => {});
        """
    )
    assert violated == "connect-src"
    severe = [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert [message for message in severe if "127.0.0.2" not in message] == []


def test_theme_follows_the_system_until_one_is_chosen(page: Chrome, console: Service) -> None:
    def theme() -> tuple[str, bool]:
        name = page.execute_script("return document.documentElement.dataset.theme")
        background = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        return str(name), sum(json.loads(background.replace("rgb(", "[").replace(")", "]"))) < 200

    assert theme() == ("light", False)
    set_color_scheme(page, "dark")
    wait_until(page, lambda: theme() == ("dark", True), "the dark theme of the system")
    page.find_element(By.XPATH, "//button[contains(., 'Switch theme')]").click()
    wait_until(page, lambda: theme() == ("light", False), "the light theme that was chosen")
    visit(page, console)
    assert theme() == ("light", False)


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 900)])
def test_page_fits_a_phone_and_a_desktop(page: Chrome, console: Service, width: int, height: int) -> None:
    set_screen_size(page, width, height)
    visit(page, console)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    drawings = page.find_elements(By.CSS_SELECTOR, "#loop svg")
    assert [drawing.is_displayed() for drawing in drawings] == [width > 720, width <= 720]
    # Screen readers get the description of the drawing.
    assert "Passed on so far" in str(drawings[0].get_attribute("aria-label"))


def test_command_needs_confirmation_and_works_by_keyboard(page: Chrome, kafka: str) -> None:
    def press(*keys: str) -> None:
        ActionChains(page).send_keys(*keys).perform()

    def focused() -> str:
        return str(page.execute_script("return document.activeElement.innerText.trim()"))

    page.execute_script("document.body.focus()")
    wait_until(page, lambda: press(Keys.TAB) or focused() == "Train now", "the focus on the button")
    press(Keys.ENTER)
    wait_until(page, lambda: focused() == "Cancel", "a dialog with the focus on Cancel")
    press(Keys.ESCAPE)
    wait_until(page, lambda: not page.find_elements(By.CLASS_NAME, "confirm"), "the dialog is closed")
    assert commands_of_line(kafka) == []
    page.find_element(By.XPATH, "//button[contains(., 'Train now')]").send_keys(Keys.ENTER)
    wait_until(page, lambda: focused() == "Cancel", "the dialog again")
    press(Keys.TAB)
    wait_until(page, lambda: focused() == "Start run", "the focus on the other button")
    press(Keys.ENTER)
    (command,) = wait_until(page, lambda: commands_of_line(kafka), "the command in the log")
    assert command.kind == "train_now"
    result = CommandResult(
        line=LINE,
        command_id=command.command_id,
        status="refused",
        message="nothing usable",
        executor="trainer",
        finished_at=NOW,
    )
    put(kafka, "trainer", "operator.results", command.command_id, result)
    body = page.find_element(By.TAG_NAME, "body")
    wait_until(page, lambda: "Train now: refused. nothing usable" in body.text, "the result")


def test_many_open_pages_read_no_more_than_one(page: Chrome, console: Service, redis_url: str) -> None:
    redis: Any = Redis.from_url(redis_url)

    def reads() -> int:
        return int(redis.info("commandstats")["cmdstat_get"]["calls"])

    def seconds_for_four_refreshes() -> float:
        before, started = reads(), time.monotonic()
        wait_until(page, lambda: reads() >= before + 8, "four refreshes, of two keys each")
        return time.monotonic() - started

    with_one_page = seconds_for_four_refreshes()
    first = page.current_window_handle
    for _ in range(5):
        page.switch_to.new_window("tab")
        visit(page, console)
    with_six_pages = seconds_for_four_refreshes()
    for handle in page.window_handles:
        if handle != first:
            page.switch_to.window(handle)
            page.close()
    page.switch_to.window(first)
    redis.close()
    assert with_six_pages > with_one_page / 2


@pytest.mark.parametrize("transport", ["websocket", "polling"])
@pytest.mark.parametrize("header", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}])
def test_foreign_page_gets_no_websocket(console: Service, transport: str, header: dict[str, str]) -> None:
    path = f"/_nicegui_ws/socket.io/?EIO=4&transport={transport}"
    upgrade = SOCKET if transport == "websocket" else {}
    assert console.http.get(path, headers=upgrade | header).status_code == 403
    assert console.http.get("/", headers=header).status_code == 403


def test_console_stops_cleanly_while_a_page_is_open(
    env: dict[str, str], chromium: Chrome, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running("console", tmp_path_factory.mktemp("stops"), env) as service:
        visit(chromium, service)
        started = time.monotonic()
        terminate(service.child, seconds=20)
        assert (service.child.returncode, time.monotonic() - started < 15) == (0, True)
        assert "Traceback" not in service.log.read_text()
