"""The trainer's settings, all by `LOOPWRIGHT_TRAINER_*` beside those that every service has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator

from services.trainer.core.quiet_hours import QuietHours, zone_of
from services.trainer.core.recipe import (
    KTO_LEAST,
    SHORTER_MARGIN,
    CommentMode,
    Method,
    Mode,
    Recipe,
    Thresholds,
    WantedDtype,
)
from shared.settings import Settings


def _own(name: str) -> AliasChoices:
    return AliasChoices(f"LOOPWRIGHT_TRAINER_{name.upper()}", name)


class TrainerSettings(Settings):
    """Environment only."""

    port: int = Field(8004, ge=0, le=65535, validation_alias=_own("port"), description="health and metrics")
    hosts: frozenset[str] = Field(
        frozenset(),
        validation_alias=_own("hosts"),
        description='JSON list of names, beside localhost and IP addresses, that it is reached by: ["trainer"]',
    )
    mode: Mode = Field(
        "train",
        validation_alias=_own("mode"),
        description="export: writes a dataset whenever a run would begin, and never trains",
    )
    examples: int = Field(
        200, ge=1, validation_alias=_own("examples"), description="usable new examples that start a run"
    )
    users: int = Field(
        20, ge=1, validation_alias=_own("users"), description="from at least so many distinct users"
    )
    aged_examples: int = Field(
        50, ge=1, validation_alias=_own("aged_examples"), description="fewer will do ..."
    )
    age_hours: float = Field(
        24, ge=0, validation_alias=_own("age_hours"), description="... once one has waited so long"
    )
    min_interval_hours: float = Field(
        0,
        ge=0,
        validation_alias=_own("min_interval_hours"),
        description="from the beginning of one run to that of the next; a command need not wait",
    )
    quiet_hours: str = Field(
        "",
        validation_alias=_own("quiet_hours"),
        description="e.g. 22:00-06:00: no run begins by itself then; a command need not wait, a run that is under "
        "way goes on",
    )
    time_zone: str = Field(
        "UTC", validation_alias=_own("time_zone"), description="of the quiet hours: an IANA name"
    )
    comment_mode: CommentMode = Field(
        "hold",
        validation_alias=_own("comment_mode"),
        description="append: response + ' ' + comment is trained; revise: a stronger model rewrites the answer",
    )
    reviser_url: str = Field(
        "",
        validation_alias=_own("reviser_url"),
        description="an OpenAI-compatible endpoint, up to /v1: gets the conversations that comments are on",
    )
    reviser_model: str = Field("", validation_alias=_own("reviser_model"))
    reviser_key: SecretStr | None = Field(
        None, validation_alias=_own("reviser_key"), description="API key, where it wants one"
    )
    reviser_limit: int = Field(
        500, ge=1, validation_alias=_own("reviser_limit"), description="comments asked for in one run"
    )
    reviser_timeout_s: float = Field(60.0, gt=0, validation_alias=_own("reviser_timeout_s"))
    kto_least: int = Field(
        KTO_LEAST,
        ge=1,
        validation_alias=_own("kto_least"),
        description="of the rarer label among judged answers; with fewer the liked ones train by SFT",
    )
    kto_beta: float = Field(
        0.1, gt=0, validation_alias=_own("kto_beta"), description="higher stays closer to the base"
    )
    dpo_beta: float = Field(
        0.1, gt=0, validation_alias=_own("dpo_beta"), description="higher stays closer to the base"
    )
    dpo_nll: float = Field(
        1.0,
        ge=0,
        validation_alias=_own("dpo_nll"),
        description="weight of the chosen answer's own likelihood",
    )
    preference_rate: float = Field(
        0.1,
        gt=0,
        le=1,
        validation_alias=_own("preference_rate"),
        description="share of the learning rate at which steps of KTO and DPO are made",
    )
    method: Method = Field(
        "lora",
        validation_alias=_own("method"),
        description="full: all weights of the base, in fp32; inference serves adapters alone, so only where "
        "SERVE_ELSEWHERE says so",
    )
    serve_elsewhere: bool = Field(
        False,
        validation_alias=_own("serve_elsewhere"),
        description="versions are taken from the artifact store and served by something else",
    )
    rank: int = Field(
        16, ge=1, le=512, validation_alias=_own("rank"), description="LoRA rank; alpha is twice that"
    )
    learning_rate: float = Field(
        1.5e-3,
        gt=0,
        validation_alias=_own("learning_rate"),
        description="suits a small base; larger ones want less",
    )
    epochs: float = Field(4.0, gt=0, validation_alias=_own("epochs"))
    batch_size: int = Field(8, ge=1, validation_alias=_own("batch_size"))
    max_tokens: int = Field(
        512, ge=16, validation_alias=_own("max_tokens"), description="longer examples are held"
    )
    seed: int = Field(20, validation_alias=_own("seed"))
    checkpoint_steps: int = Field(20, ge=1, validation_alias=_own("checkpoint_steps"))
    replay_prompts: int = Field(
        320,
        ge=1,
        validation_alias=_own("replay_prompts"),
        description="of the shipped ones, spread over the epochs",
    )
    replay_share: float = Field(
        0.05, ge=0, le=0.9, validation_alias=_own("replay_share"), description="least share of trained tokens"
    )
    replay_new_tokens: int = Field(
        40,
        ge=4,
        validation_alias=_own("replay_new_tokens"),
        description="of the base's answer to a general prompt",
    )
    gate_items: int = Field(30, ge=1, validation_alias=_own("gate_items"), description="fewer: inconclusive")
    gate_new_tokens: int = Field(40, ge=4, validation_alias=_own("gate_new_tokens"))
    gate_eval_prompts: int = Field(
        600,
        ge=1,
        validation_alias=_own("gate_eval_prompts"),
        description="of the shipped ones; with fewer a fall of general ability is seen later",
    )
    gate_safety_prompts: int = Field(
        60, ge=1, validation_alias=_own("gate_safety_prompts"), description="of the shipped ones"
    )
    gate_shorter: float = Field(
        SHORTER_MARGIN,
        ge=0,
        le=1,
        validation_alias=_own("gate_shorter"),
        description="by how much less often than stable a version may go on where general answers are long; 1: your "
        "users want short ones",
    )
    report_texts: bool = Field(
        False,
        validation_alias=_own("report_texts"),
        description="the door tells the answers in gate reports also where it is reached from other machines",
    )
    golden: Path | None = Field(
        None,
        validation_alias=_own("golden"),
        description="a JSONL file of your own questions that no version may answer worse (`gate/golden.py`)",
    )
    dtype: WantedDtype = Field(
        "auto",
        validation_alias=_own("dtype"),
        description="in which a run computes; auto: float32 where this processor multiplies it faster and memory is "
        "ample, else bfloat16",
    )
    threads: int = Field(
        0,
        ge=0,
        validation_alias=_own("threads"),
        description="torch threads of a run; 0: one per core. Its process yields to all others",
    )

    artifact_keep: int = Field(
        10,
        ge=1,
        validation_alias=_own("artifact_keep"),
        description="newest versions of a line that `loopwright artifacts gc` leaves, beside those that are needed",
    )
    artifact_grace_hours: float = Field(
        168,
        ge=1,
        validation_alias=_own("artifact_grace_hours"),
        description="what was put into the artifact store since is left, whatever it is",
    )

    replay: Path | None = Field(
        None,
        validation_alias=_own("replay"),
        description="where the base's own answers are kept; several trainers may share it (default: DATA_DIR/replay)",
    )

    @field_validator("quiet_hours")
    @classmethod
    def _are_hours(cls, told: str) -> str:
        QuietHours.parse(told)
        return told

    @field_validator("golden")
    @classmethod
    def _is_a_golden_set(cls, path: Path | None) -> Path | None:
        if path is not None:
            from services.trainer.gate import golden  # noqa: PLC0415 - what scores answers, only where there is a set

            golden.read(path)
        return path

    @field_validator("time_zone")
    @classmethod
    def _is_a_zone(cls, told: str) -> str:
        zone_of(told)
        return told

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.comment_mode == "revise" and not (self.reviser_url and self.reviser_model):
            raise ValueError(
                "LOOPWRIGHT_TRAINER_COMMENT_MODE=revise needs LOOPWRIGHT_TRAINER_REVISER_URL and "
                "LOOPWRIGHT_TRAINER_REVISER_MODEL: users' conversations go there"
            )
        if self.method == "full" and not self.serve_elsewhere:
            raise ValueError(
                "LOOPWRIGHT_TRAINER_METHOD=full makes whole models, and inference serves LoRA adapters over one base: "
                "set LOOPWRIGHT_TRAINER_SERVE_ELSEWHERE=true if something else serves what the artifact store holds"
            )
        return self

    def thresholds(self) -> Thresholds:
        return Thresholds(
            examples=self.examples,
            users=self.users,
            aged_examples=self.aged_examples,
            age_s=self.age_hours * 3600,
            interval_s=self.min_interval_hours * 3600,
            quiet=QuietHours.parse(self.quiet_hours),
            time_zone=self.time_zone,
        )

    def recipe(self) -> Recipe:
        chosen = {name: getattr(self, name) for name in Recipe.model_fields}
        return Recipe(**chosen | {"threads": self.threads or len(os.sched_getaffinity(0))})

    @property
    def replay_dir(self) -> Path:
        return self.replay or self.data_dir / "replay"

    @property
    def folder(self) -> Path:
        """What this trainer keeps: table, runs, replay. Holds users' texts; nothing of it is published."""
        return self.data_dir / "trainer" / self.line

    @property
    def runs(self) -> Path:
        """A folder for each run, by its id."""
        return self.folder / "runs"

    @property
    def revisions(self) -> Path:
        """What the reviser made of comments (`rewrite_cache.py`)."""
        return self.folder / "revisions"

    @property
    def exports(self) -> Path:
        """Datasets to take elsewhere, each under its digest. They hold users' texts; an erasure reaches them here."""
        return self.folder / "exports"
