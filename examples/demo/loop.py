"""Stages of the demo, observed through the public APIs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from examples.demo.chats import BackgroundLoad, Clients, ExamAnswer, run_exam, run_visits
from examples.demo.summary import Summary, Swap, share_right
from examples.demo.terminal_ui import Screen, Stage
from examples.demo.user_behaviour import Reactions
from examples.demo.users import USERS_PER_TEMPERAMENT, Visit
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
"""Name of the gate's figure for general ability, a share of right answers."""


class DemoFailed(Exception):
    """The loop did not complete. The message names the stage and where to look."""


def demo_stages() -> list[Stage]:
    """Return the stages in the order in which they run."""
    return [
        Stage(SETUP, "Set up (once per machine)"),
        Stage("start", "Start Kafka, Redis and the six services"),
        Stage("ask_before", "Ask the held-out questions"),
        Stage("feedback", f"{sum(USERS_PER_TEMPERAMENT.values())} users chat and give feedback"),
        Stage("batches", "Join the feedback and cut batches"),
        Stage("train", "Train a version and run the gate"),
        Stage("swap", "Swap to the new version"),
        Stage("ask_after", "Ask the held-out questions again"),
    ]


@dataclass(slots=True)
class DemoRun:
    """One run of the demo on a running stack."""

    clients: Clients
    world: World
    visits: list[Visit]
    screen: Screen
    shuffled: bool = False
    before: list[ExamAnswer] = field(default_factory=list)
    after: list[ExamAnswer] = field(default_factory=list)
    corrected_event: tuple[str, str] | None = None
    """(response_id, event_id) of a correction whose receipt is shown."""
    accepted: int = 0
    commanded: bool = False
    """Whether the demo sent `train_now` instead of waiting for the threshold."""

    def run(self) -> Summary:
        """Run all stages.

        Raises:
            DemoFailed: if a stage fails or times out.

        """
        self.before = self._exam("ask_before")
        self._give_feedback()
        self._wait_for_batches()
        questions = [wording for fact in self.world.facts for wording in self.world.trained_wordings(fact)]
        load = BackgroundLoad(self.clients, questions)
        load.start()
        try:
            version = self._train()
            load.speed_up()
            self._swap(version)
            load.wait_for(LOAD_REQUESTS)
        finally:
            load.stop()
        self.after = self._exam("ask_after")
        return self._summary(version, load)

    def _exam(self, name: str) -> list[ExamAnswer]:
        with self.screen.stage(name) as stage:
            count = self._counter(stage, len(self.world.heldout()), "questions")
            answers = run_exam(self.clients, self.world, count)
            stage.detail = f"{share_right(answers):.0%} right of {len(answers)}"
        return answers

    def _give_feedback(self) -> None:
        with self.screen.stage("feedback") as stage:
            statuses: Counter[str] = Counter()
            visits: list[Reactions] = []
            count = self._counter(stage, len(self.visits), "chats")
            for reactions in run_visits(self.clients, self.visits, count):
                statuses += reactions.statuses
                visits.append(reactions)
            self.accepted = statuses["accepted"]
            corrections = (reactions.correction for reactions in visits if reactions.correction)
            self.corrected_event = next(corrections, None)
            stage.detail = f"{len(self.visits)} chats, {self.accepted} feedback events accepted"

    def _wait_for_batches(self) -> None:
        with self.screen.stage("batches") as stage:

            def settled() -> bool:
                status = self._status()
                progress = f"{status['batches']['count']} batches, {status['pending']} events pending"
                self.screen.detail(stage, progress)
                return bool(status["pending"] == 0 and status["accepted"] >= self.accepted)

            self._wait(settled, BATCHED_WITHIN_S, "events are still pending; see the processor's log")
            ledger = self._status()["ledger"]
            stage.detail += f"; {', '.join(f'{name} {count}' for name, count in sorted(ledger.items()))}"
        if self.shuffled:
            # Shuffled corrections contradict each other, so the threshold may not be reached.
            self.commanded = True
            self.clients.loop.command("train_now")

    def _train(self) -> Version | None:
        with self.screen.stage("train") as stage:
            published: list[Version] = []

            def is_published() -> bool:
                published[:] = [version for version in self.clients.loop.versions() if version.verdict]
                status = self._status()
                self.screen.detail(stage, _progress(status))
                self._train_if_late(status, stage)
                if (status.get("run") or {}).get("stage") == "failed":
                    raise DemoFailed(f"the run failed: {status['run'].get('reason')}")
                return bool(published) or (self.shuffled and self._has_no_data())

            self._wait(is_published, TRAINED_WITHIN_S, "no version was published; see the trainer's log")
            version = published[0] if published else None
            stage.detail = (
                f"{version.version}: {version.verdict}"
                if version
                else "nothing to train: all examples are quarantined"
            )
        return version

    def _train_if_late(self, status: dict[str, Any], stage: Stage) -> None:
        """Send `train_now` if the threshold is not reached, for example because some answers were right by chance."""
        if not status.get("run") and not self.commanded and stage.seconds > TRIGGERED_WITHIN_S:
            self.commanded = True
            self.clients.loop.command("train_now")

    def _has_no_data(self) -> bool:
        """Return whether the trainer has no usable examples."""
        collected = self._status().get("collected") or {}
        return int(collected.get("usable", 1)) == 0

    def _swap(self, version: Version | None) -> None:
        with self.screen.stage("swap") as stage:
            if version is None or version.verdict != "passed":
                stage.detail = f"no swap: {self._status()['serving']['version']} keeps serving"
                return

            def serving() -> bool:
                return self.clients.ask("examiner", "Hello")[2] == version.version

            self._wait(
                serving, SERVING_WITHIN_S, "the version is not serving; see the inference service's log"
            )
            stage.detail = f"{version.version} is serving"

    def _summary(self, version: Version | None, load: BackgroundLoad) -> Summary:
        status = self._status()
        gate = version.model_dump(mode="json", include={"verdict", "reasons", "figures"}) if version else {}
        figures: list[dict[str, Any]] = gate.get("figures", [])
        general = next((figure for figure in figures if figure["name"] == GENERAL), {})
        seconds = self.screen.seconds()
        receipt = self.clients.loop.receipt(*self.corrected_event) if self.corrected_event else None
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

    def _counter(self, stage: Stage, total: int, unit: str) -> Callable[[], None]:
        done: list[None] = []

        def count() -> None:
            done.append(None)
            self.screen.detail(stage, f"{len(done)} of {total} {unit}")

        return count

    def _status(self) -> dict[str, Any]:
        return self.clients.loop.status().model_dump()

    def _wait(self, condition: Callable[[], bool], timeout_s: float, problem: str) -> None:
        wait_until(condition, timeout_s, problem, DemoFailed)


def _progress(status: dict[str, Any]) -> str:
    """Return the progress of collection or training in a few words."""
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
        parts.append(f"{run['eta_s']:.0f} s left")
    return ", ".join(parts)
