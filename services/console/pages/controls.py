"""The operator's buttons. Each asks first, and then gives its command as `POST /api/commands` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nicegui import ui

from services.console.api.routes import ConsoleBackend
from services.console.core import responses
from services.console.core.command_requests import CommandRequest
from services.console.pages.formatting import short
from services.console.pages.refresher import PERIOD_S, PageRefresher
from shared.errors import LoopwrightError

WAITS_S = 60.0


@dataclass(frozen=True, slots=True)
class Deed:
    """What a button does, in words. `versions` offers some to choose from, None where the command names none."""

    kind: str
    label: str
    asks: str
    explains: str
    does: str
    versions: Callable[[PageRefresher], dict[str, str]] | None = None


def _passed(board: PageRefresher) -> dict[str, str]:
    return {
        v.version: f"{v.version}, {v.verdict}"
        for v in board.view.versions
        if v.verdict in ("passed", "base") and not v.serving
    }


def _earlier(board: PageRefresher) -> dict[str, str]:
    return {"": "the version before the present one"} | _passed(board)


DEEDS = (
    Deed(
        "train_now",
        "Train now",
        "Start a run now?",
        "It trains on what is usable, however little that is, and is tested by the gate like any other.",
        "Start the run",
    ),
    Deed(
        "promote",
        "Promote",
        "Let a version serve all users?",
        "It takes over without a failed request. Versions that did not pass the gate are not offered here.",
        "Promote",
        _passed,
    ),
    Deed(
        "rollback",
        "Roll back",
        "Go back to an earlier version?",
        "It takes over without a failed request, and answers all users.",
        "Roll back",
        _earlier,
    ),
    Deed(
        "pause",
        "Pause",
        "Pause the rollout?",
        "What serves goes on serving; no new version takes over until somebody resumes.",
        "Pause",
    ),
    Deed(
        "resume",
        "Resume",
        "Resume the rollout?",
        "New versions that pass the gate take over again.",
        "Resume",
    ),
)


def add_controls(console: ConsoleBackend, board: PageRefresher) -> None:
    """Into the present slot. Of pause and resume the one that would change something is shown."""
    place = ui.element("span")
    buttons = {deed.kind: _add(deed, console, board, place) for deed in DEEDS}

    def fit() -> None:
        paused = board.view.serving is not None and board.view.serving.paused
        buttons["pause"].set_visibility(not paused)
        buttons["resume"].set_visibility(paused)

    ui.timer(PERIOD_S, fit)


def _add(deed: Deed, console: ConsoleBackend, board: PageRefresher, place: ui.element) -> ui.button:
    def ask() -> None:
        with ui.dialog() as dialog, ui.card().classes("confirm"):
            ui.html(deed.asks, sanitize=False, tag="h2")
            ui.html(deed.explains, sanitize=False, tag="p")
            offered = deed.versions(board) if deed.versions else {}
            choice = None
            if deed.versions is not None and not offered:
                ui.html("There is none to choose.", sanitize=False, tag="p")
            elif deed.versions is not None:
                choice = ui.select(offered, value=next(iter(offered)), label="Version").classes("w-full")

            async def go() -> None:
                dialog.close()
                version = (choice and choice.value) or None
                # What comes of it is told when the dialog is long gone.
                with place:
                    await give(console, CommandRequest(kind=deed.kind, line=board.line, version=version))

            with ui.row().classes("tools"):
                ui.button("Not now", on_click=dialog.close, color=None).props("flat no-caps autofocus")
                if deed.versions is None or offered:
                    ui.button(deed.does, on_click=go, color=None).props("flat no-caps").classes("go")
        dialog.on("hide", dialog.delete)
        dialog.open()

    return ui.button(deed.label, on_click=ask, color=None).props("flat no-caps")


async def give(console: ConsoleBackend, order: CommandRequest) -> None:
    """Gives the command; says what came of it as soon as that is known, or what is wrong with it."""
    try:
        command_id = await console.command(order)
    except LoopwrightError as error:
        ui.notify(str(error), type="negative", multi_line=True, timeout=15_000, close_button="Close")
        return
    about = f"{order.kind.replace('_', ' ')} {short(order.version) if order.version else ''}".strip()
    ui.notify(f"Given: {about}", timeout=3_000)
    waited = 0.0

    def look() -> None:
        nonlocal waited
        waited += PERIOD_S
        with console.lock:
            found = responses.command(console.state, command_id)
        if found is not None and found["status"] != "pending":
            timer.cancel()
            text = f"{about}: {found['status']}. {found['message']}"
            done = found["status"] == "done"
            ui.notify(
                text,
                type="positive" if done else "negative",
                multi_line=True,
                timeout=15_000,
                close_button="Close",
            )
        elif waited >= WAITS_S:
            timer.cancel()
            ui.notify(
                f"{about} still waits to be carried out", type="warning", close_button="Close", timeout=15_000
            )

    timer = ui.timer(PERIOD_S, look)
