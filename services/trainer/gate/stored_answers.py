"""Answers that an interrupted gate has generated already, in the folder of its run.

Generation takes most of a gate's time. A process that was killed, stopped or ran out of memory is followed by another
one, which reads what is complete. The files contain users' text; they are deleted when the report is written, and by
any erasure that affects the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.trainer.core.chat import Messages
from services.trainer.files import remove, write_whole
from services.trainer.gate.model_pair import Side
from services.trainer.run.folder import GATE_PARTS
from shared.events import canonical_json, sha256


@dataclass(frozen=True, slots=True)
class StoredAnswers:
    """Answers of one gate, one file per version and task.

    Attributes:
        run: Folder in which the gate works.
        versions: Name of each version. Answers of a version with another name are not used.

    """

    run: Path
    versions: Mapping[Side, str]

    def answers(
        self,
        side: Side,
        task: str,
        prompts: Sequence[Messages],
        max_new_tokens: int,
        generate: Callable[[], list[str]],
    ) -> list[str]:
        """Return the stored answers to exactly these prompts, or generate and store them."""
        asked = [
            self.versions[side],
            max_new_tokens,
            [[list(turn) for turn in messages] for messages in prompts],
        ]
        digest = sha256(canonical_json(asked))
        file = self.run / GATE_PARTS / f"{side}-{task}.json"
        if file.exists():
            stored = json.loads(file.read_bytes())
            if stored["digest"] == digest:
                return list(stored["answers"])
        answers = generate()
        write_whole(file, json.dumps({"digest": digest, "answers": answers}, ensure_ascii=False).encode())
        return answers

    def remove(self) -> None:
        """Delete the files, once the report has been written."""
        remove(self.run / GATE_PARTS)
