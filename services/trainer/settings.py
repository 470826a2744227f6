"""Settings of the trainer: `LOOPWRIGHT_TRAINER_*`, and the common ones of `shared/settings.py`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from services.trainer.core.hardware import DeviceChoice
from services.trainer.core.quiet_hours import QuietHours, zone_of
from services.trainer.core.recipe import Mode, Recipe, Thresholds
from shared.settings import Settings

JUDGE_REPLIES: Final = "judgements"
"""Name of the folder of the judge model's replies, next to the folder of runs."""


class TrainerSettings(Settings, Recipe):
    """When the trainer starts a run, how the run trains (`Recipe`), and where its data is stored."""

    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_TRAINER_")

    port: int = Field(8004, ge=0, le=65535, description="Port of the HTTP API, health and metrics.")
    mode: Mode = Field(
        "train",
        description="train: fine-tune and publish versions. export: write a dataset whenever a run would start, "
        "and never train.",
    )

    examples: int = Field(200, ge=1, description="Number of new usable examples that starts a run.")
    grow_percent: float = Field(
        10,
        ge=0,
        le=1000,
        description="New usable examples that start a run, in percent of what the last run trained on, if that is "
        "more than EXAMPLES.",
    )
    users: int = Field(20, ge=1, description="Minimum number of distinct users behind the new examples.")
    aged_examples: int = Field(
        50, ge=1, description="Smaller number of new examples that starts a run after AGE_HOURS."
    )
    age_hours: float = Field(
        24, ge=0, description="How long the oldest new example waits before AGED_EXAMPLES are enough."
    )
    min_interval_hours: float = Field(
        0, ge=0, description="Minimum time from the start of one run to the next. Commands do not wait."
    )
    require_gate_items: bool = Field(
        True,
        description="Start no run without a command while its gate would have fewer than GATE_ITEMS items, or too few "
        "held-out users.",
    )
    gate_again_limit: int = Field(
        3,
        ge=0,
        description="How often the newest version is gated again by itself, if its gate had too little feedback and "
        "enough has arrived since.",
    )
    retry_limit: int = Field(
        1,
        ge=0,
        description="How often the data of a version that users prefer, but that lost general ability, is trained "
        "again by itself with more replay.",
    )
    retrain_after_erasure: bool = Field(
        True,
        description="Train again when an erasure affects the stable version, on the remaining data, outside "
        "QUIET_HOURS.",
    )
    erasure_interval_hours: float = Field(
        24,
        ge=0,
        description="Minimum time between the starts of two such runs. Erasures in between are joined into one run.",
    )
    quiet_hours: str = Field(
        "",
        description="Hours in which no run starts without a command, for example 22:00-06:00. A run in progress "
        "continues.",
    )
    time_zone: str = Field("UTC", description="IANA name of the time zone of QUIET_HOURS.")

    reviser_url: str = Field(
        "",
        description="OpenAI-compatible endpoint, up to /v1, of the model that rewrites answers from comments. "
        "It receives the users' conversations.",
    )
    reviser_key: SecretStr | None = Field(None, description="API key for REVISER_URL, if it needs one.")
    reviser_limit: int = Field(
        500, ge=1, description="Maximum number of comments sent to the reviser per run."
    )
    reviser_timeout_s: float = Field(
        60.0, gt=0, description="Timeout of one request to the reviser, in seconds."
    )

    judge_url: str = Field(
        "",
        description="OpenAI-compatible endpoint, up to /v1, of a model that judges held-out items which the gate's "
        "rules leave tied. It receives held-out users' conversations and answers.",
    )
    judge_model: str = Field("", description="Name of the judge model. Required with JUDGE_URL.")
    judge_key: SecretStr | None = Field(None, description="API key for JUDGE_URL, if it needs one.")
    judge_limit: int = Field(
        200, ge=1, description="Most tied items per gate that the judge model is asked about, each twice."
    )
    judge_minutes: float = Field(
        10.0, gt=0, description="Time per gate after which the judge model is not asked any more."
    )
    judge_timeout_s: float = Field(
        60.0, gt=0, description="Timeout of one request to the judge model, in seconds."
    )

    serve_elsewhere: bool = Field(
        False,
        description="Another system serves the versions in the artifact store. Required for METHOD=full.",
    )
    report_texts: bool = Field(
        False,
        description="Return the examples in gate reports, which are users' text, also if HOST is not a loopback "
        "address. Protect the API with your own proxy.",
    )
    golden: Path | None = Field(
        None,
        description="JSONL file of your own questions that no version may answer worse than stable "
        "(format: `gate/golden.py`).",
    )
    device: str = Field(
        "auto",
        description="What runs compute on. auto: the first free GPU, or the CPU if there is none. cpu. cuda: the first "
        "free GPU; without one the trainer waits. cuda:N: this GPU, by its number in nvidia-smi. N,M: these GPUs; a "
        "process uses the first.",
    )
    processes: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        1,
        description="Processes that train a run together on this machine, each on a GPU of its own, or all on the CPU. "
        "auto: one for each GPU that DEVICE allows; 1 without a GPU.",
    )
    nnodes: int = Field(
        1,
        ge=1,
        le=1024,
        description="Machines that train a run together, as of torchrun. Each has the same number of processes.",
    )
    node_rank: int = Field(
        0,
        ge=0,
        description="Number of this machine among them. The trainer runs on machine 0; the others run "
        "`python -m services.trainer.worker.join`.",
    )
    rdzv_endpoint: str = Field(
        "",
        description="host:port of machine 0, where the processes of all machines meet. Required if NNODES > 1.",
    )
    threads: int = Field(
        0,
        ge=0,
        description="Threads that torch uses in a run; 0 means one per core. The process runs at low priority.",
    )

    artifact_keep: int = Field(
        10,
        ge=1,
        description="Newest versions of a line that `loopwright artifacts gc` keeps, in addition to those in use.",
    )
    artifact_grace_hours: float = Field(
        168, ge=1, description="Age below which `loopwright artifacts gc` never removes an artifact."
    )
    replay: Path | None = Field(
        None,
        description="Folder for the base's own answers. Several trainers may share it. Default: DATA_DIR/replay.",
    )
    replay_prompt_file: Path | None = Field(
        None,
        description="File of your own general prompts for replay data, one per line, in addition to the shipped ones "
        "(format: `base/replay_prompt_file.py`).",
    )

    @field_validator("quiet_hours")
    @classmethod
    def _check_quiet_hours(cls, value: str) -> str:
        QuietHours.parse(value)
        return value

    @field_validator("time_zone")
    @classmethod
    def _check_time_zone(cls, value: str) -> str:
        zone_of(value)
        return value

    @field_validator("device")
    @classmethod
    def _check_device(cls, value: str) -> str:
        DeviceChoice.parse(value)
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.comment_mode == "revise" and not (self.reviser_url and self.reviser_model):
            raise ValueError(
                "LOOPWRIGHT_TRAINER_COMMENT_MODE=revise requires LOOPWRIGHT_TRAINER_REVISER_URL and "
                "LOOPWRIGHT_TRAINER_REVISER_MODEL: users' conversations are sent there"
            )
        if self.judge_url and not self.judge_model:
            raise ValueError(
                "LOOPWRIGHT_TRAINER_JUDGE_URL requires LOOPWRIGHT_TRAINER_JUDGE_MODEL: the name of the model there"
            )
        if self.method == "full" and not self.serve_elsewhere:
            raise ValueError(
                "LOOPWRIGHT_TRAINER_METHOD=full trains whole models, but inference serves LoRA adapters on one base: "
                "set LOOPWRIGHT_TRAINER_SERVE_ELSEWHERE=true if another system serves the artifact store's versions"
            )
        if self.node_rank >= self.nnodes:
            raise ValueError(
                f"LOOPWRIGHT_TRAINER_NODE_RANK={self.node_rank} must be less than LOOPWRIGHT_TRAINER_NNODES="
                f"{self.nnodes}: machines are numbered from 0"
            )
        host, _, port = self.rdzv_endpoint.rpartition(":")
        if self.nnodes > 1 and not (host and port.isdecimal()):
            raise ValueError(
                "LOOPWRIGHT_TRAINER_NNODES > 1 requires LOOPWRIGHT_TRAINER_RDZV_ENDPOINT=host:port of machine 0, "
                "for example trainer-0:29500"
            )
        return self

    def thresholds(self) -> Thresholds:
        """Return when a run starts without a command."""
        return Thresholds(
            examples=self.examples,
            users=self.users,
            aged_examples=self.aged_examples,
            age_s=self.age_hours * 3600,
            interval_s=self.min_interval_hours * 3600,
            grow_percent=self.grow_percent,
            gate_items=self.gate_items if self.require_gate_items and self.mode == "train" else 0,
            erasure_interval_s=self.erasure_interval_hours * 3600,
            quiet=QuietHours.parse(self.quiet_hours),
            time_zone=self.time_zone,
        )

    def recipe(self) -> Recipe:
        """Return the recipe of a run that starts now, with the number of threads of this machine."""
        fields = {name: getattr(self, name) for name in Recipe.model_fields}
        return Recipe(**fields | {"threads": self.threads or len(os.sched_getaffinity(0))})

    @property
    def world_size(self) -> int:
        """Number of processes that train a run together, on all machines. In a run's processes `auto` is resolved."""
        return self.nnodes * (1 if self.processes == "auto" else self.processes)

    @property
    def replay_dir(self) -> Path:
        """Folder of the base's own answers."""
        return self.replay or self.data_dir / "replay"

    @property
    def folder(self) -> Path:
        """Folder of this trainer: database, runs, exports. It contains users' text, and is never published."""
        return self.data_dir / "trainer" / self.line

    @property
    def runs(self) -> Path:
        """Folder with a folder for each run, named by its id."""
        return self.folder / "runs"

    @property
    def revisions(self) -> Path:
        """Cache of answers rewritten from comments (`rewrite_cache.py`)."""
        return self.folder / "revisions"

    @property
    def judge_replies(self) -> Path:
        """Cache of the judge model's replies, by digest (`gate/judge_model.py`). Every erasure deletes it."""
        return self.folder / JUDGE_REPLIES

    @property
    def exports(self) -> Path:
        """Folder with exported datasets, each named by its digest. They contain users' text; erasures apply to them."""
        return self.folder / "exports"
