"""Check of the base at start, in a process of its own, because the service imports no model library.

`python -m services.trainer.worker.base_check FOLDER KWARGS [GOLDEN]` prints a `BaseCheck` as JSON. KWARGS are the
arguments of the chat template, as JSON, and GOLDEN is the golden set.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from services.trainer.files import write_whole
from services.trainer.gate import golden as golden_set
from services.trainer.worker.launcher import process_environment
from shared import chat_format, literal_tokens
from shared.adapters.base_model import PinnedBase
from shared.chat_format import TemplateKwargs
from shared.errors import Misconfigured
from shared.events import canonical_json, sha256

TIMEOUT_S: Final = 300
MAX_ERROR: Final = 2000
CHECKED_BY: Final = (chat_format, literal_tokens, golden_set)
"""Modules that decide the result of a check."""


@dataclass(frozen=True, slots=True)
class BaseCheck:
    """What the service needs to know of a base's chat template.

    Attributes:
        problem: Why the base cannot be trained, with a remedy; None if it can.
        marks: Texts by which its prompts separate turns (`ChatFormat.marks`).

    """

    problem: str | None = None
    marks: frozenset[str] = frozenset()


def remembered_check(
    file: Path, base: PinnedBase, template_kwargs: TemplateKwargs, golden: Path | None = None
) -> BaseCheck:
    """Check as `check_base` does, unless `file` says that the same check found no problem before.

    The libraries that the check imports take seconds of processor time at every start.
    """
    key = _check_key(base, template_kwargs, golden)
    known = json.loads(file.read_bytes()) if file.exists() else {}
    if known.get("key") == key:
        return BaseCheck(None, frozenset(known["marks"]))
    found = check_base(base.path, template_kwargs, golden)
    if found.problem is None:
        write_whole(file, json.dumps({"key": key, "marks": sorted(found.marks)}).encode())
    return found


def _check_key(base: PinnedBase, template_kwargs: TemplateKwargs, golden: Path | None) -> str:
    """Return a digest of everything that determines the result of a check."""
    code = [sha256(Path(module.__file__ or "").read_bytes()) for module in CHECKED_BY]
    asked = sha256(golden.read_bytes()) if golden is not None else None
    return sha256(
        canonical_json([base.digest, dict(template_kwargs), asked, metadata.version("transformers"), code])
    )


def check_base(base: Path, template_kwargs: TemplateKwargs, golden: Path | None = None) -> BaseCheck:
    """Check a base's chat template, and that it renders the golden set.

    Raises:
        Misconfigured: The base's tokenizer cannot be used, or the template refuses a golden question.

    """
    arguments = [str(base), json.dumps(dict(template_kwargs)), *([str(golden)] if golden is not None else [])]
    module = "services.trainer.worker.base_check"
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "services.trainer.worker.child", module, *arguments],
            env=process_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Misconfigured(f"the check of the base in {base} did not end within {TIMEOUT_S} s") from None
    if ended.returncode != 0:
        raise Misconfigured(f"the base in {base} cannot be used: {ended.stderr.strip()[-MAX_ERROR:]}")
    fields = json.loads(ended.stdout.splitlines()[-1])
    return BaseCheck(fields["problem"], frozenset(fields["marks"]))


def inspect_base(base: Path, template_kwargs: TemplateKwargs, golden: Path | None = None) -> BaseCheck:
    """Check as `check_base` does, in this process. Raises `Misconfigured`, or an error of transformers."""
    from services.trainer.base.tokenization import load_chat  # noqa: PLC0415 - imports transformers
    from services.trainer.gate.golden import read_golden_set, require_rendered  # noqa: PLC0415 - not in the service

    chat = load_chat(base, template_kwargs)
    if golden is not None:
        require_rendered(golden, read_golden_set(golden), chat)
    return BaseCheck(chat.training_problem(), chat.marks)


def main() -> int:
    """Check the base and print the result."""
    try:
        golden = Path(sys.argv[3]) if len(sys.argv) > 3 else None
        found = inspect_base(Path(sys.argv[1]), json.loads(sys.argv[2]), golden)
    except (OSError, ValueError, Misconfigured) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(asdict(found) | {"marks": sorted(found.marks)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
