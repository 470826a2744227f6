"""Buttons of the page. Each asks for confirmation and then sends its command as `POST /api/commands` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from nicegui import ui

from services.console.backend import ConsoleBackend
from services.console.core.command_requests import CommandRequest
from services.console.pages.formatting import short_version
from services.console.pages.refresher import PERIOD_S, PageRefresher
from shared.errors import LoopwrightError

RESULT_TIMEOUT_S: Final = 60.0
"""How long the page waits for a command's result before it says that there is none yet."""
NOTICE_MS: Final = 15_000
SHORT_NOTICE_MS: Final = 3_000


@dataclass(frozen=True, slots=True)
class CommandButton:
    """A button, and the dialog that confirms it."""

    kind: str
    label: str
    question: str
    explanation: str
    confirm_label: str
    versions: Callable[[PageRefresher], dict[str, str]] | None = None
    """Returns the versions to choose from, with their labels; None if the command names no version."""
    of_canary: bool = False
    """For `rollback`: roll the canary back. The button is visible while there is one."""
    again: bool = False
    """For `train_now`: train also if nothing is new."""


@dataclass(frozen=True, slots=True)
class Operator:
    """Who looks at the page."""

    name: str
    """Name of the API key, which commands record."""
    may_operate: Callable[[], bool]
    """Returns whether the key has the scope `operate`, now."""


def _canary(refresher: PageRefresher) -> str | None:
    return None if refresher.view.serving is None else refresher.view.serving.canary_version


def _promotable(refresher: PageRefresher) -> dict[str, str]:
    return {
        v.version: f"{v.version}, {v.verdict}"
        for v in refresher.view.versions
        if v.verdict in ("passed", "base") and not v.serving
    }


def _rollback_targets(refresher: PageRefresher) -> dict[str, str]:
    return {"": "Previous stable version"} | _promotable(refresher)


BUTTONS: Final = (
    CommandButton(
        "train_now",
        "Train now",
        "Start a run now?",
        "The run trains on the usable examples collected so far, however few. "
        "The gate evaluates it like any other run.",
        "Start run",
    ),
    CommandButton(
        "train_now",
        "Train again",
        "Train on the same data again?",
        "The run trains on everything usable with the trainer's present settings, also if nothing is new: for example "
        "after a run that failed or was inconclusive.",
        "Train again",
        again=True,
    ),
    CommandButton(
        "promote",
        "Promote",
        "Promote a version?",
        "The version takes over all users without a failed request. "
        "You can choose the base or a version that passed the gate.",
        "Promote",
        _promotable,
    ),
    CommandButton(
        "rollback",
        "Roll back",
        "Roll back to an earlier version?",
        "The earlier version takes over all users without a failed request. No version trained on the same data is "
        "promoted until you resume the rollout.",
        "Roll back",
        _rollback_targets,
    ),
    CommandButton(
        "rollback",
        "End canary",
        "Roll the canary back?",
        "The stable version serves all users again. The canary is never promoted automatically again, and no version "
        "trained on the same data is promoted until you resume the rollout.",
        "Roll back",
        of_canary=True,
    ),
    CommandButton(
        "pause",
        "Pause",
        "Pause the rollout?",
        "The stable version keeps serving, and a canary its share of the users. No new version takes over until you "
        "resume the rollout.",
        "Pause",
    ),
    CommandButton(
        "resume",
        "Resume",
        "Resume the rollout?",
        "New versions that pass the gate can take over again.",
        "Resume",
    ),
)


def add_controls(backend: ConsoleBackend, refresher: PageRefresher, operator: Operator) -> None:
    """Add the buttons to the current slot, if the page's key may operate.

    Of pause and resume, only the one that has an effect is visible.
    """
    if not operator.may_operate():
        return
    anchor = ui.element("span")
    buttons = {button.label: _add_button(button, backend, refresher, operator, anchor) for button in BUTTONS}

    def update_visibility() -> None:
        paused = refresher.view.serving is not None and refresher.view.serving.paused
        buttons["Pause"].set_visibility(not paused)
        buttons["Resume"].set_visibility(paused)
        buttons["End canary"].set_visibility(_canary(refresher) is not None)

    ui.timer(PERIOD_S, update_visibility)


def _add_button(
    button: CommandButton,
    backend: ConsoleBackend,
    refresher: PageRefresher,
    operator: Operator,
    anchor: ui.element,
) -> ui.button:
    def open_dialog() -> None:
        serving = refresher.view.serving
        leaving = serving.version if button.kind == "rollback" and serving is not None else None
        leaving = _canary(refresher) if button.of_canary else leaving
        with ui.dialog() as dialog, ui.card().classes("confirm"):
            ui.html(button.question, sanitize=False, tag="h2")
            ui.html(button.explanation, sanitize=False, tag="p")
            versions = button.versions(refresher) if button.versions else {}
            choice = None
            if button.versions is not None and not versions:
                ui.html("No version is available.", sanitize=False, tag="p")
            elif button.versions is not None:
                choice = ui.select(versions, value=next(iter(versions)), label="Version").classes("w-full")

            async def confirm() -> None:
                dialog.close()
                version = (choice and choice.value) or None
                # The dialog is deleted before the result arrives, so notices are shown in the anchor's slot.
                with anchor:
                    request = CommandRequest(
                        kind=button.kind,
                        line=refresher.line,
                        version=version,
                        leaving=leaving,
                        again=button.again or None,
                    )
                    await send_command(backend, request, operator)

            with ui.row().classes("tools"):
                ui.button("Cancel", on_click=dialog.close, color=None).props("flat no-caps autofocus")
                if button.versions is None or versions:
                    ui.button(button.confirm_label, on_click=confirm, color=None).props(
                        "flat no-caps"
                    ).classes("primary")
        dialog.on("hide", dialog.delete)
        dialog.open()

    return ui.button(button.label, on_click=open_dialog, color=None).props("flat no-caps")


async def send_command(backend: ConsoleBackend, request: CommandRequest, operator: Operator) -> None:
    """Send a command, and show its result as soon as it is known, or why it was refused."""
    if not operator.may_operate():
        _notify("The API key of this page may no longer send commands. Reload the page.", "negative")
        return
    try:
        command_id = await backend.send_command(request, issued_by=operator.name)
    except LoopwrightError as error:
        _notify(str(error), "negative")
        return
    name = request.kind.replace("_", " ").capitalize()
    if request.version:
        name += f" {short_version(request.version)}"
    ui.notify(f"{name}: sent", timeout=SHORT_NOTICE_MS)
    waited_s = 0.0

    def check_result() -> None:
        nonlocal waited_s
        waited_s += PERIOD_S
        command = backend.command(command_id)
        if command is not None and command["status"] != "pending":
            timer.cancel()
            _notify(
                f"{name}: {command['status']}. {command['message']}",
                "positive" if command["status"] == "done" else "negative",
            )
        elif waited_s >= RESULT_TIMEOUT_S:
            timer.cancel()
            _notify(
                f"{name}: not executed yet. Check that the service that executes it is running.", "warning"
            )

    timer = ui.timer(PERIOD_S, check_result)


def _notify(text: str, tone: Literal["positive", "negative", "warning"]) -> None:
    ui.notify(
        text,
        type=tone,
        multi_line=True,
        timeout=NOTICE_MS,
        close_button="Close",
    )
