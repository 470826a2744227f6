"""An inconclusive verdict is no dead end: the trainer gates or trains again within limits, or says what helps."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.commands.way_forward import Outlook, WayForwardReader
from services.trainer.core.recipe import Recipe
from services.trainer.core.way_forward import (
    GENERAL_FIGURES,
    NewestVersion,
    way_forward,
    with_more_replay,
)
from services.trainer.dataset.holdout import is_held_out
from services.trainer.files import write_whole
from services.trainer.gate.metrics import METRICS
from services.trainer.run import run_table
from services.trainer.run.folder import CONFIG, GATE_RESULT
from services.trainer.run.run_table import Run, RunConfig
from services.trainer.service import Trainer
from shared.adapters import redis_keys
from shared.adapters.in_memory import InMemoryPublisher
from shared.cloudevents import cloudevent
from shared.commands import COMMAND, CommandResult, GateAgain
from shared.errors import BrokerUnavailable
from shared.events import parse_union
from shared.live_status import CollectedStatus
from shared.records import Output
from shared.topics import MODEL_ROLLOUT, MODEL_VERSIONS, OPERATOR_COMMANDS, OPERATOR_RESULTS, TRAINING_BATCHES
from shared.versions import Figure, GateReport, GateTest, ModelVersion, RolloutRecord, VersionRef
from tests.trainer_factories import LINE, NOW, FakeProcess, TrainerRig, batch, finish_run, revision, run_steps

TRAINING = [name for name in (f"user-{i}" for i in range(60)) if not is_held_out(LINE, name)]
HELDOUT = [name for name in (f"user-{i}" for i in range(500)) if is_held_out(LINE, name)]
BASE = f"{LINE}@base-{'ab' * 4}"
VOTED = GateTest(wins=12, losses=4, ties=4, users=9, groups=9, p_users=0.04, p_groups=0.04)
NOT_SHOWN = GateReport(
    verdict="inconclusive",
    reasons=("not shown to be better: 12 won, 4 lost",),
    gated_against=BASE,
    more_items=3,
    alpha=0.025,
    test=VOTED,
)
TOO_FEW_USERS = NOT_SHOWN.model_copy(
    update={
        "reasons": ("too little held-out feedback to decide: 6 of 8 users",),
        "more_items": 2,
        "alpha": None,
        "test": GateTest(wins=30, losses=4, ties=4, users=6, groups=9, p_users=0.04, p_groups=0.04),
    }
)
WON = Figure(name="user_votes", n=9, value=0.5, passed=True)
FORGOT = GateReport(
    verdict="failed",
    reasons=("general accuracy fell by 4.0 points",),
    figures=(WON, Figure(name="general_accuracy_change", n=493, value=-0.04, passed=False)),
    gated_against=BASE,
    alpha=0.025,
    test=VOTED,
)
PASSED = GateReport(verdict="passed", gated_against=BASE, alpha=0.025, test=VOTED)


# --- the decision -------------------------------------------------------------------------------------------------


def version(**fields: object) -> NewestVersion:
    given = {"name": f"{LINE}@v3-12345678", "verdict": "inconclusive", "reasons": ("why",)} | fields
    return NewestVersion(**given)  # type: ignore[arg-type]


versions = st.builds(
    NewestVersion,
    name=st.just(f"{LINE}@v3-12345678"),
    verdict=st.sampled_from(["passed", "failed", "inconclusive"]),
    reasons=st.lists(st.text(max_size=400), max_size=3).map(tuple),
    items=st.integers(0, 500),
    more_items=st.none() | st.integers(0, 500),
    more_users=st.integers(0, 10),
    new_items=st.integers(0, 600),
    new_users=st.integers(0, 12),
    gates=st.integers(0, 5),
    is_better=st.booleans(),
    lost=st.sets(st.sampled_from(["general_accuracy_change", "skills_change", "golden_passed", "win_rate"])),
    runs=st.integers(0, 3),
    recipe=st.builds(
        Recipe,
        replay_kl=st.sampled_from([0.0, 1.0, 3.0]),
        replay_share=st.sampled_from([0.0, 0.1, 0.9]),
        seed=st.integers(0, 50),
    ),
)


@given(versions, st.integers(0, 4), st.integers(0, 3))
def test_nothing_starts_without_a_reason_or_beyond_a_limit(
    newest: NewestVersion, gate_limit: int, run_limit: int
) -> None:
    forward = way_forward(newest, newest.recipe, gate_limit, run_limit)
    if newest.verdict == "passed":
        assert forward.action is None
    if forward.action == "gate_again":
        assert newest.verdict == "inconclusive"
        assert newest.gates < gate_limit
        assert newest.more_items is not None
        assert newest.new_items >= max(newest.more_items, newest.items / 10)
        assert newest.new_users >= newest.more_users
    if forward.action == "train_again":
        assert newest.runs < run_limit
        assert newest.is_better
        assert newest.lost
        assert all(name.startswith(GENERAL_FIGURES) for name in newest.lost)
        assert forward.recipe is not None
        assert forward.recipe.seed != newest.recipe.seed
    if forward.action is not None or newest.verdict == "inconclusive":
        assert forward.reason, "a person learns what happens, or what to do"


@given(versions, st.integers(1, 4), st.integers(1, 3))
def test_enough_new_feedback_always_starts_a_gate(
    newest: NewestVersion, gate_limit: int, run_limit: int
) -> None:
    needed = newest.items_needed
    if needed is not None and newest.gates < gate_limit:
        enough = newest.new_items >= needed and newest.new_users >= newest.more_users
        action = way_forward(newest, newest.recipe, gate_limit, run_limit).action
        assert action == ("gate_again" if enough else None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"more_items": 12, "new_items": 4}, "is inconclusive: 12 more held-out items needed, 4 arrived"),
        ({"more_items": 2, "items": 200, "new_items": 4}, "20 more held-out items needed, 4 arrived"),
        ({"more_items": 2, "more_users": 2, "new_items": 9}, "2 more held-out users needed, 0 arrived"),
        ({"more_items": 2, "new_items": 9, "gates": 3}, "`loopwright gate assistant@v3-12345678 --again`"),
        ({"reasons": ("safety may have fallen",)}, "`loopwright train now --again`"),
        (
            {"verdict": "failed", "is_better": True, "lost": {"skills_change"}, "runs": 1},
            "set LOOPWRIGHT_TRAINER_REPLAY_KL higher, then `loopwright train now --again`",
        ),
    ],
)
def test_reason_says_what_is_missing_or_what_a_person_can_do(fields: dict[str, object], said: str) -> None:
    forward = way_forward(version(**fields), Recipe(), 3, 1)
    assert forward.action is None
    assert said in forward.reason


@pytest.mark.parametrize(
    ("recipe", "change", "field", "value"),
    [
        (Recipe(replay_kl=1.0), "replay weight 3", "replay_kl", 3.0),
        (Recipe(replay_kl=3.0), "replay weight 9", "replay_kl", 9.0),
        (Recipe(replay_kl=0.0, replay_share=0.1), "replay share 0.2", "replay_share", 0.2),
        (Recipe(method="full", replay_share=0.4), "replay share 0.8", "replay_share", 0.8),
    ],
)
def test_replay_is_raised_where_the_recipe_weighs_it(
    recipe: Recipe, change: str, field: str, value: float
) -> None:
    changed, words = with_more_replay(recipe, recipe)
    assert changed is not None
    assert words == f"{change} and seed {recipe.seed + 1}"
    assert changed == recipe.model_copy(update={field: value, "seed": recipe.seed + 1})


def test_replay_that_cannot_be_raised_starts_nothing() -> None:
    full = Recipe(replay_kl=0.0, replay_share=0.9)
    newest = version(verdict="failed", is_better=True, lost={"general_nll_rise"}, recipe=full)
    forward = way_forward(newest, full, 3, 3)
    assert (forward.action, "LEARNING_RATE" in forward.reason) == (None, True)


@pytest.mark.parametrize(
    "fields",
    [
        {"is_better": False, "lost": {"general_accuracy_change"}},
        {"is_better": True, "lost": {"general_accuracy_change", "golden_passed"}},
        {"is_better": True, "lost": {"liked_said_change"}},
        {"is_better": True, "lost": {"base_liked_said_change"}},
        {"is_better": True, "lost": set()},
    ],
)
def test_no_run_repeats_what_replay_does_not_keep(fields: dict[str, object]) -> None:
    assert way_forward(version(verdict="failed", **fields), Recipe(), 3, 3).action is None


def test_loss_of_any_general_figure_trains_again() -> None:
    """Those of harness tasks are named by the operator's tasks, and those against the base by a prefix."""
    for name in (
        "lm_eval_gsm8k_change",
        "base_general_accuracy_change",
        "base_skills_change",
        "safety_refused_change",
    ):
        assert way_forward(version(verdict="failed", is_better=True, lost={name}), Recipe(), 0, 1).action, (
            name
        )


def test_every_figure_that_can_fail_is_known_to_be_general_or_not() -> None:
    """A new metric of general ability must be named like the others, or its loss would never be trained again."""
    general = {"general_accuracy", "general_likelihood", "continuation", "safety", "skills", "lm_eval"}
    for metric in METRICS:
        names = [figure.name for figure in metric.figures]
        is_general = metric.name in general or metric.name.startswith("skill_")
        assert all(name.startswith(GENERAL_FIGURES) for name in names) == is_general, metric.name


# --- the trainer --------------------------------------------------------------------------------------------------


class Loop:
    """A trainer whose runs and gates end with given reports."""

    def __init__(
        self, folder: Path, *reports: GateReport, again: GateReport = NOT_SHOWN, **settings: float
    ) -> None:
        self.reports = list(reports)
        self.again = again
        self.settings = settings
        self.gates: list[RunConfig] = []
        self.rig = TrainerRig(folder, self._finish_run)
        self.gate: Callable[[Path], int | None] = self._finish_gate
        self.trainer = self.start()
        self.send(TRAINING[:3], 1)

    def start(self) -> Trainer:
        """Return a trainer as after a restart."""
        self.trainer = self.rig.trainer(
            **{"examples": 3, "users": 3, "replay_kl": 1.0, "seed": 20} | self.settings
        )
        self.trainer.gate_repeater.start_process = lambda folder: FakeProcess(self.gate(folder))  # type: ignore[assignment, return-value]
        return self.trainer

    def _finish_run(self, folder: Path) -> int:
        code = finish_run(folder)
        write_whole(folder / GATE_RESULT, self.reports.pop(0).model_dump_json().encode())
        write_whole(folder / "artifact" / "adapter_config.json", folder.name.encode())
        return code

    def _finish_gate(self, folder: Path) -> int:
        self.gates.append(RunConfig.from_json((folder / CONFIG).read_text()))
        write_whole(folder / GATE_RESULT, self.again.model_dump_json().encode())
        return 0

    def send(self, users: list[str], number: int, steps: int = 10) -> None:
        examples = [
            revision(f"r{number}-{user}", f"What is {user} {number}?", f"It is {user} {number}.", user)
            for user in users
        ]
        one = batch(examples, number)
        self.rig.log.append(
            cloudevent(
                TRAINING_BATCHES, one.batch_id, one, source="processor", ce_id="x", at=NOW, partition=0
            )
        )
        run_steps(self.trainer, steps)

    def promote(self, ref: VersionRef) -> None:
        record = RolloutRecord(
            line=LINE,
            seq=2,
            action="pin",
            stable=ref,
            reason="an operator did",
            decided_at=NOW,
        )
        self.rig.log.append(Output(MODEL_ROLLOUT.name, b"k", record.to_json()))

    def commands(self) -> list[GateAgain]:
        found = [parse_union(COMMAND, r.value) for r in self.rig.log.records(OPERATOR_COMMANDS.name)]
        return [one for one in found if isinstance(one, GateAgain)]

    def results(self) -> list[CommandResult]:
        return [CommandResult.from_json(r.value) for r in self.rig.log.records(OPERATOR_RESULTS.name)]

    def versions(self) -> list[ModelVersion]:
        records = [ModelVersion.from_json(r.value) for r in self.rig.log.records(MODEL_VERSIONS.name)]
        return [one for one in records if one.number is not None]

    def runs(self) -> list[Run]:
        return run_table.all_runs(self.trainer.db)

    def status(self) -> str:
        status = CollectedStatus.from_json(self.rig.cache.get(redis_keys.collected(LINE)))
        assert status is not None
        return status.reason


def test_version_is_gated_again_once_enough_feedback_has_arrived(tmp_path: Path) -> None:
    loop = Loop(tmp_path, NOT_SHOWN, again=PASSED)
    loop.send(HELDOUT[:2], 2)
    assert loop.gates == []
    assert "is inconclusive: 3 more held-out items needed, 2 arrived" in loop.status()
    loop.send(HELDOUT[2:4], 3)
    (command,) = loop.commands()
    assert (command.issued_by, command.version) == ("trainer", loop.versions()[0].ref.version)
    assert "3 more held-out items needed, 4 arrived" in str(command.reason)
    assert [(result.command_id, result.status) for result in loop.results()] == [(command.command_id, "done")]
    assert [(v.gate.number, v.gate.verdict) for v in loop.versions() if v.gate] == [
        (1, "inconclusive"),
        (2, "passed"),
    ]
    assert loop.gates[0].through == {"0": 3}
    assert loop.gates[0].gate_look == 2
    assert "inconclusive" not in loop.status()


def test_feedback_counts_from_the_last_gate_on(tmp_path: Path) -> None:
    loop = Loop(tmp_path, NOT_SHOWN)
    loop.send(HELDOUT[:3], 2)
    assert len(loop.gates) == 1
    loop.send(HELDOUT[3:5], 3)
    assert len(loop.gates) == 1
    assert "3 more held-out items needed, 2 arrived" in loop.status()
    loop.send(HELDOUT[5:6], 4)
    assert len(loop.gates) == 2


def test_version_is_gated_again_by_itself_up_to_the_limit(tmp_path: Path) -> None:
    loop = Loop(tmp_path, NOT_SHOWN, gate_again_limit=2)
    for number in range(2, 8):
        loop.send(HELDOUT[3 * number : 3 * number + 3], number)
    assert len(loop.gates) == 2
    assert [command.command_id[-2:] for command in loop.commands()] == ["-1", "-2"]
    assert "no more than 2 are allowed: `loopwright gate" in loop.status()
    assert [config.gate_look for config in loop.gates] == [2, 3]


def test_limit_zero_turns_it_off(tmp_path: Path) -> None:
    loop = Loop(tmp_path, NOT_SHOWN, gate_again_limit=0)
    loop.send(HELDOUT[:9], 2)
    assert (loop.gates, loop.commands()) == ([], [])


def test_missing_users_are_awaited_and_not_only_items(tmp_path: Path) -> None:
    loop = Loop(tmp_path, TOO_FEW_USERS)
    loop.send(HELDOUT[:1], 2)
    for number in range(3, 8):
        loop.send(HELDOUT[:1], number)
    assert loop.gates == []
    assert "2 more held-out users needed, 1 arrived" in loop.status()
    loop.send(HELDOUT[1:2], 9)
    assert len(loop.gates) == 1


def test_nothing_is_gated_again_against_another_stable_version(tmp_path: Path) -> None:
    loop = Loop(tmp_path, PASSED, NOT_SHOWN)
    loop.send(TRAINING[3:6], 2)
    first, second = loop.versions()
    loop.promote(first.ref)
    loop.send(HELDOUT[:9], 3)
    assert (second.gate and second.gate.gated_against, loop.commands()) == (BASE, [])


def test_due_run_comes_before_another_gate(tmp_path: Path) -> None:
    loop = Loop(tmp_path, NOT_SHOWN, PASSED)
    loop.send([*TRAINING[3:6], *HELDOUT[:9]], 2)
    assert (len(loop.runs()), loop.gates) == (2, [])


def test_no_gate_starts_in_quiet_hours(tmp_path: Path) -> None:
    loop = Loop(tmp_path, NOT_SHOWN)
    loop.settings = {"quiet_hours": "00:00-23:59"}  # type: ignore[dict-item]
    loop.start()
    loop.send(HELDOUT[:9], 2)
    assert loop.commands() == []


# --- a crash at any point ---


class Crash(BaseException):
    """The trainer ends here, as by SIGKILL."""


CRASHES = [*range(24)]


@pytest.mark.parametrize("seed", CRASHES)
def test_crashes_neither_repeat_nor_lose_a_gate(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crashes, lost acknowledgements and an unavailable broker at random writes to the log and to the database."""
    dice = random.Random(seed)
    loop = Loop(tmp_path, NOT_SHOWN, gate_again_limit=2)
    publish, begun = InMemoryPublisher.publish, [0]

    def fail(publisher: InMemoryPublisher, record: Output) -> object:
        begun[0] += 1
        point = dice.random()
        if point < 0.2:
            raise Crash
        future = publish(publisher, record)
        if point < 0.4:
            raise Crash
        if point < 0.5:
            raise BrokerUnavailable("no acknowledgement")
        return future

    monkeypatch.setattr(InMemoryPublisher, "publish", fail)
    settle = type(loop.trainer.commands).settle

    def settle_or_crash(*args: object) -> None:
        if dice.random() < 0.3:
            raise Crash
        settle(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(type(loop.trainer.commands), "settle", settle_or_crash)
    for number in range(2, 8):
        users = HELDOUT[3 * number : 3 * number + 3]
        for attempt in range(12):
            try:
                if attempt == 0:
                    loop.send(users, number, steps=0)
                run_steps(loop.trainer, 6)
                break
            except Crash:
                loop.start()
                loop.trainer._stop_tasks()
    monkeypatch.undo()
    run_steps(loop.trainer, 8)
    numbers = [one.gate.number for one in loop.versions() if one.gate]
    assert numbers == [1, 2, 3], "two gates by itself, each published once"
    assert len({command.command_id for command in loop.commands()}) == 2
    results = [result.command_id for result in loop.results()]
    assert len(set(results)) == 2
    assert begun[0]


# --- another run ---


def test_lost_general_ability_trains_the_same_data_with_more_replay(tmp_path: Path) -> None:
    loop = Loop(tmp_path, FORGOT, PASSED)
    first, second = loop.runs()
    assert second.reason == (
        "general accuracy fell by 4.0 points: the same data trains again with replay weight 3 and seed 21"
    )
    assert (second.config.through, second.config.released) == (first.config.through, first.config.released)
    assert (second.config.retry_of, second.config.recipe.replay_kl) == (first.config.run_id, 3.0)
    assert second.config.recipe.seed != first.config.recipe.seed
    assert [one.gate.verdict for one in loop.versions() if one.gate] == ["failed", "passed"]


def test_data_is_trained_again_within_the_limit(tmp_path: Path) -> None:
    loop = Loop(tmp_path, *[FORGOT] * 5, retry_limit=2)
    run_steps(loop.trainer, 12)
    assert [run.config.recipe.replay_kl for run in loop.runs()] == [1.0, 3.0, 9.0]
    assert "runs with more replay: 2 of 2 allowed: set LOOPWRIGHT_TRAINER_REPLAY_KL higher" in loop.status()


def test_new_data_may_be_trained_again_as_well(tmp_path: Path) -> None:
    loop = Loop(tmp_path, *[FORGOT] * 4)
    assert len(loop.runs()) == 2
    loop.send(TRAINING[3:6], 2)
    assert [run.config.retry_of is not None for run in loop.runs()] == [False, True, False, True]


def test_restart_starts_no_second_run(tmp_path: Path) -> None:
    loop = Loop(tmp_path, *[FORGOT] * 4)
    for _ in range(3):
        loop.start()
        run_steps(loop.trainer)
    assert len(loop.runs()) == 2


def test_no_run_with_more_replay_against_another_stable_version(tmp_path: Path) -> None:
    loop = Loop(tmp_path, PASSED, FORGOT, PASSED)
    loop.promote(loop.versions()[0].ref)
    loop.send(TRAINING[3:6], 2)
    assert len(loop.runs()) == 2


def test_doubt_about_general_ability_trains_again(tmp_path: Path) -> None:
    loop = Loop(tmp_path, FORGOT.model_copy(update={"verdict": "inconclusive"}), PASSED)
    assert [run.config.retry_of is not None for run in loop.runs()] == [False, True]


def test_idle_trainer_does_not_read_the_verdict_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path, NOT_SHOWN)
    reads: list[int] = []
    read = WayForwardReader._read

    def counted(reader: WayForwardReader) -> Outlook | None:
        reads.append(1)
        return read(reader)

    monkeypatch.setattr(WayForwardReader, "_read", counted)
    run_steps(loop.trainer, 20)
    assert len(reads) <= 1
