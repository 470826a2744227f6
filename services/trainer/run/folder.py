"""Files in a run's folder, and the exit codes of the process that works there.

Every run has the folder `DATA_DIR/trainer/<line>/runs/<run_id>`:

| name | content | written by |
| --- | --- | --- |
| `config.json` | the run's `RunConfig` | supervisor, before it starts the process |
| `run.log` | output of the process (text) | the process |
| `attempts.json` | how often the process ended early, and where | supervisor |
| `train.parquet`, `heldout.parquet` | rows that train, rows that evaluate (text) | snapshot |
| `snapshot.json` | digest, sizes, quarantined rows; written last, so it marks the snapshot as complete | snapshot |
| `data-card.json`, `data-card.md` | statistics of the snapshot | snapshot, training |
| `replay_prompts.jsonl` | the operator's own replay prompts, as they were when training began | training |
| `dtype.json` | data type of the run's computations | training |
| `environments.json` | software and hardware that the run trained on | training |
| `resolved-recipe.json` | values that the run trains with, derived ones included | training |
| `micro-batch.json` | tokens per forward pass | training; the supervisor if memory did not suffice |
| `eval-batch.json` | rows evaluated at once, if memory did not suffice for the usual number | supervisor, the process |
| `checkpoints/` | state from which training resumes (text) | training |
| `tensorboard/` | training curves | training |
| `evidence.json` | diagnostics of a loss that became NaN or infinite, with names of rows | training |
| `adapter/` | trained weights; renamed into place when complete (text) | training |
| `control/` | the control that the candidate is compared with, laid out like a run's folder (text) | pipeline |
| `gate-parts/` | answers that an interrupted gate has generated already (text) | gate |
| `gate_answers.jsonl` | answers of both versions to held-out questions (text) | gate |
| `gate_report.json`, `gate_report.html` | full gate report with examples (text) | gate |
| `artifact/` | weights, model card and lineage, as published (text) | pipeline |
| `gate.json` | the `GateReport` of the version; written last, so it marks the run as complete | pipeline |
| `failed.txt` | why the run failed and must not be retried | the process |

A name that starts with a dot is a file or folder that is not complete. A process that reproduces a version
or gates it again works in a folder of the same layout, with the version's own artifact in `original/`. Its result is
`compared.json` or `gate.json`.

Entries marked "text" contain users' text, or weights that were trained on it. When an erasure affects a run, only the
redacted snapshot and the entries in `WITHOUT_TEXT` stay (`erasure/redact_run.py`).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from services.trainer.base.dtype import DTYPE_FILE as DTYPE
from services.trainer.dataset.data_card import DATA_CARD, DATA_CARD_PAGE
from services.trainer.dataset.snapshot_files import SNAPSHOT

CONFIG: Final = "config.json"
RUN_LOG: Final = "run.log"
ATTEMPTS: Final = "attempts.json"
ENVIRONMENTS: Final = "environments.json"
MICRO_BATCH: Final = "micro-batch.json"
EVAL_BATCH: Final = "eval-batch.json"
RESOLVED_RECIPE: Final = "resolved-recipe.json"
CHECKPOINTS: Final = "checkpoints"
TENSORBOARD: Final = "tensorboard"
NAN_REPORT: Final = "evidence.json"
ADAPTER: Final = "adapter"
CONTROL: Final = "control"
GATE_PARTS: Final = "gate-parts"
GATE_ANSWERS: Final = "gate_answers.jsonl"
GATE_REPORT: Final = "gate_report.json"
GATE_REPORT_PAGE: Final = "gate_report.html"
ARTIFACT: Final = "artifact"
GATE_RESULT: Final = "gate.json"
FAILURE_REASON: Final = "failed.txt"

ORIGINAL: Final = "original"
COMPARISON: Final = "compared.json"
REPRODUCE_LOG: Final = "reproduce.log"
GATE_AGAIN_LOG: Final = "gate_again.log"

GATE_TEXTS: Final = (GATE_ANSWERS, GATE_REPORT, GATE_REPORT_PAGE)
"""Files with questions and corrections of held-out users, and the answers of both versions."""
WITHOUT_TEXT: Final = frozenset(
    {
        CONFIG,
        SNAPSHOT,
        GATE_RESULT,
        FAILURE_REASON,
        DATA_CARD,
        DATA_CARD_PAGE,
        ENVIRONMENTS,
        TENSORBOARD,
        MICRO_BATCH,
        EVAL_BATCH,
        RESOLVED_RECIPE,
        DTYPE,
    }
)
"""Entries that an erasure leaves: they contain statistics, settings and reasons, but no user's text or feedback."""


class ExitCode(IntEnum):
    """Exit codes of a process that trains. Any other code is an unexpected error; a negative one is a signal."""

    DONE = 0
    FAILED = 3
    """The run must not be retried; `failed.txt` gives the reason."""
    OUT_OF_MEMORY = 4
    """Memory did not suffice; the next start uses smaller batches."""
    DISK_FULL = 5
    """The disk is full; what the run can do without has been deleted."""
    MEMORY_EXHAUSTED = 6
    """Memory did not suffice even for the smallest batches."""
    PEER_LOST = 7
    """A process of the run on another machine ended, or did not answer."""
    STOPPED = 143
    """Stopped by SIGTERM; the next start resumes the run."""
