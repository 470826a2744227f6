"""Check of the base at start, in a process of its own, because the service imports no model library.

`python -m services.trainer.worker.base_check FOLDER KWARGS` prints a `BaseCheck` as JSON. KWARGS are the arguments of
the chat template, as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from services.trainer.worker.launcher import process_environment
from shared.chat_format import TemplateKwargs
from shared.errors import Misconfigured

TIMEOUT_S: Final = 300
MAX_ERROR: Final = 2000


@dataclass(frozen=True, slots=True)
class BaseCheck:
    """What the service needs to know of a base's chat template.

    Attributes:
        problem: Why the base cannot be trained, with a remedy; None if it can.
        marks: Texts by which its prompts separate turns (`ChatFormat.marks`).

    """

    problem: str | None = None
    marks: frozenset[str] = frozenset()


def check_base(base: Path, template_kwargs: TemplateKwargs) -> BaseCheck:
    """Check a base's chat template. Raises `Misconfigured` if the base's tokenizer cannot be used."""
    arguments = [str(base), json.dumps(dict(template_kwargs))]
    ended = subprocess.run(
        [sys.executable, "-m", "services.trainer.worker.base_check", *arguments],
        env=process_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if ended.returncode != 0:
        raise Misconfigured(f"the tokenizer in {base} cannot be used: {ended.stderr.strip()[-MAX_ERROR:]}")
    fields = json.loads(ended.stdout.splitlines()[-1])
    return BaseCheck(fields["problem"], frozenset(fields["marks"]))


def inspect_base(base: Path, template_kwargs: TemplateKwargs) -> BaseCheck:
    """Check a base's chat template in this process. Raises `Misconfigured`, or an error of transformers."""
    from services.trainer.base.tokenization import load_chat  # noqa: PLC0415 - imports transformers

    chat = load_chat(base, template_kwargs)
    return BaseCheck(chat.training_problem(), chat.marks)


def main() -> int:
    """Check the base and print the result."""
    try:
        found = inspect_base(Path(sys.argv[1]), json.loads(sys.argv[2]))
    except (OSError, ValueError, Misconfigured) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(asdict(found) | {"marks": sorted(found.marks)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
