"""The demo's course: each stage of the loop, watched from outside through the public doors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from examples.demo.chats import Answered, Doors, Load, examine, visit_all
from examples.demo.summary import Summary, Swap, share_right
from examples.demo.terminal_ui import Screen, Stage
from examples.demo.user_behaviour import Reactions
from examples.demo.users import CAST, Visit
from examples.polling import wait_until
from examples.world import World
from loopwright import Version

BATCHED_WITHIN_S = 60.0
TRIGGERED_WITHIN_S = 30.0
TRAINED_WITHIN_S = 3600.0
SERVING_WITHIN_S = 60.0
LOAD_REQUESTS = 200
SETUP = "prepare"
GENERAL = "general_accuracy"
"""The gate's figure for general ability, as a share of right answers."""


class DemoFailed(Exception):
    """The loop did not close; the message says where it stopped and where to look."""


def stages() -> list[Stage]:
    """In the order in which they happen."""
    return [
        Stage(SETUP, "Set up, once per machine"),
        Stage("start", "Start Kafka, Redis and six services"),
        Stage("ask_before", "Ask the held-out questions"),
        Stage("feedback", f"{sum(CAST.values())} users chat and react"),
        Stage("batches", "Join, deduplicate, cut batches"),
        Stage("train", "Train and test a version"),
        Stage("swap", "Take the new version over"),
        Stage("ask_after", "Ask the held-out questions again"),
    ]


@dataclass(slots=True)
class Course:
    """One run of the demo over a stack that is up."""

    doors: Doors
    world: World
    visits: list[Visit]
    screen: Screen
    shuffled: bool = False
    before: list[Answered] = field(default_factory=list)
    after: list[Answered] = field(default_factory=list)
    receipt: tuple[str, str] | None = None
    accepted: int = 0
    commanded: bool = False
    """Whether a run was asked for, rather than begun by the threshold."""

    def run(self) -> Summary:
        """All stages. Raises `DemoFailed` where the loop stands still."""
        self.before = self._exam("ask_before")
        self._feedback()
        self._batches()
        questions = [wording for fact in self.world.facts for wording in self.world.trained_wordings(fact)]
        load = Load(self.doors, questions)
        load.start()
        try:
            version = self._train()
            load.hurry()
            self._swap(version)
            load.reach(LOAD_REQUESTS)
        finally:
            load.stop()
        self.after = self._exam("ask_after")
        return self._summary(version, load)

    def _exam(self, name: str) -> list[Answered]:
        with self.screen.stage(name) as stage:
            count = self._counter(stage, len(self.world.heldout()), "questions")
            answers = examine(self.doors, self.world, count)
            stage.detail = f"{share_right(answers):.0%} right of {len(answers)}"
        return answers

    def _feedback(self) -> None:
        with self.screen.stage("feedback") as stage:
            sent: Counter[str] = Counter()
            heard: list[Reactions] = []
            for said in visit_all(self.doors, self.visits, self._counter(stage, len(self.visits), "chats")):
                sent += said.sent
                heard.append(said)
            self.accepted = sent["accepted"]
            self.receipt = next((said.receipt for said in heard if said.receipt), None)
            stage.detail = f"{len(self.visits)} chats, {self.accepted} feedback events accepted"

    def _batches(self) -> None:
        with self.screen.stage("batches") as stage:

            def settled() -> bool:
                status = self._status()
                stage_text = f"{status['batches']['count']} batches, {status['pending']} events pending"
                self.screen.detail(stage, stage_text)
                return bool(status["pending"] == 0 and status["accepted"] >= self.accepted)

            self._wait(settled, BATCHED_WITHIN_S, "events are still pending: see the processor's log")
            ledger = self._status()["ledger"]
            stage.detail += f"; {', '.join(f'{name} {count}' for name, count in sorted(ledger.items()))}"
        if self.shuffled:
            # So much disagreement that the threshold may not be reached by itself.
            self.commanded = True
            self.doors.loop.command("train_now")

    def _train(self) -> Version | None:
        with self.screen.stage("train") as stage:
            found: list[Version] = []

            def published() -> bool:
                found[:] = [version for version in self.doors.loop.versions() if version.verdict]
                status = self._status()
                self.screen.detail(stage, _progress(status))
                self._hasten(status, stage)
                if (status.get("run") or {}).get("stage") == "failed":
                    raise DemoFailed(f"the run failed: {status['run'].get('reason')}")
                return bool(found) or (self.shuffled and self._refused())

            self._wait(published, TRAINED_WITHIN_S, "no version was published: see the trainer's log")
            version = found[0] if found else None
            stage.detail = (
                f"{version.version}: {version.verdict}" if version else "nothing to train: all of it is held"
            )
        return version

    def _hasten(self, status: dict[str, Any], stage: Stage) -> None:
        """What people say may fall short of the threshold, by an answer that was right by chance: then by command."""
        if not status.get("run") and not self.commanded and stage.seconds > TRIGGERED_WITHIN_S:
            self.commanded = True
            self.doors.loop.command("train_now")

    def _refused(self) -> bool:
        """Whether the trainer has nothing that it may train."""
        collected = self._status().get("collected") or {}
        return int(collected.get("usable", 1)) == 0

    def _swap(self, version: Version | None) -> None:
        with self.screen.stage("swap") as stage:
            if version is None or version.verdict != "passed":
                stage.detail = f"none: {self._status()['serving']['version']} goes on serving"
                return

            def serving() -> bool:
                return self.doors.ask("examiner", "Hello")[2] == version.version

            self._wait(
                serving, SERVING_WITHIN_S, "the version was not taken over: see the inference service's log"
            )
            stage.detail = f"{version.version} serves"

    def _summary(self, version: Version | None, load: Load) -> Summary:
        status = self._status()
        gate = version.model_dump(mode="json", include={"verdict", "reasons", "figures"}) if version else {}
        figures: list[dict[str, Any]] = gate.get("figures", [])
        general = next((figure for figure in figures if figure["name"] == GENERAL), {})
        seconds = self.screen.seconds()
        receipt = self.doors.loop.receipt(*self.receipt) if self.receipt else None
        return Summary(
            heldout_n=len(self.before),
            accuracy_before=share_right(self.before),
            accuracy_after=share_right(self.after),
            poison_learned=sum(answer.poisoned for answer in self.after),
            general_before=general.get("baseline"),
            general_after=general.get("value"),
            feedback_accepted=status["accepted"],
            ledger=status["ledger"],
            pending=status["pending"],
            batches=status["batches"]["count"],
            version=version.version if version else None,
            verdict=version.verdict if version else None,
            gate=gate,
            swap=Swap(requests=load.requests, failed=load.failed, mixed_version=load.mixed_version),
            stages_s=seconds,
            after_setup_s=round(sum(seconds.values()) - seconds.get(SETUP, 0.0), 1),
            receipt=receipt.detail if receipt else "",
        )

    def _counter(self, stage: Stage, total: int, what: str) -> Callable[[], None]:
        done: list[None] = []

        def count() -> None:
            done.append(None)
            self.screen.detail(stage, f"{len(done)} of {total} {what}")

        return count

    def _status(self) -> dict[str, Any]:
        return self.doors.loop.status().model_dump()

    def _wait(self, ready: Callable[[], bool], seconds: float, otherwise: str) -> None:
        wait_until(ready, seconds, otherwise, DemoFailed)


def _progress(status: dict[str, Any]) -> str:
    """The training run in a few words."""
    run, collected = status.get("run") or {}, status.get("collected") or {}
    if not run:
        return f"{collected.get('usable', 0)} usable examples of {collected.get('needed', '?')}"
    parts = [str(run.get("stage", "run"))]
    if run.get("steps"):
        parts.append(f"step {run.get('step')} of {run['steps']}")
    if run.get("loss") is not None:
        parts.append(f"loss {run['loss']:.2f}")
    if run.get("tokens_per_s"):
        parts.append(f"{run['tokens_per_s']:.0f} tokens/s")
    if run.get("eta_s") is not None:
        parts.append(f"{run['eta_s']:.0f} s to go")
    return ", ".join(parts)
