"""`python -m deploy.docker.model`, the model job: puts the base model where inference and the trainer look, and ends.

It is the one container that needs the network. A model that was fetched once is not looked up again: the base of a
line is pinned, and a hub's newest revision would be another base.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from deploy.local.errors import StackError
from deploy.local.model import ensure_base_model
from shared.adapters.base_model import find_base
from shared.errors import Misconfigured

STATE = Path("/var/lib/loopwright")
PINNED = "pinned.json"


def prepare(wanted: str, state: Path) -> str:
    """Returns the model's folder. `wanted` is empty (the default model), a folder, or a Hugging Face id.

    Raises `StackError` or `Misconfigured`, which say what to do.
    """
    if not wanted:
        return str(ensure_base_model(state, say))
    if Path(wanted).is_absolute():
        if not Path(wanted).is_dir():
            raise StackError(
                f"LOOPWRIGHT_BASE_MODEL={wanted} is no folder in the containers: they see the folder that "
                "LOOPWRIGHT_MODELS_DIR names as /models."
            )
        try:
            return str(find_base(wanted).path)
        except PermissionError as error:
            raise StackError(
                f"{error.filename} cannot be read in the containers, which run as user {os.getuid()}. "
                "Make the model readable for all users: chmod -R a+rX FOLDER."
            ) from error
    return fetched(wanted, state / "models" / PINNED)


def fetched(model: str, pinned: Path) -> str:
    """The folder of a hub's model, fetched unless it was fetched whole before."""
    folders: dict[str, str] = json.loads(pinned.read_text()) if pinned.exists() else {}
    if model in folders and Path(folders[model]).is_dir():
        return folders[model]
    say(f"fetching {model}")
    folders[model] = str(find_base(model).path)
    # Written last: what an interrupted job left behind is not taken for a model.
    part = pinned.with_suffix(".part")
    part.write_text(json.dumps(folders))
    part.replace(pinned)
    return folders[model]


def say(line: str) -> None:
    """One line of progress."""
    print(line, flush=True)


if __name__ == "__main__":
    try:
        say(f"base model: {prepare(os.environ.get('LOOPWRIGHT_BASE_MODEL', ''), STATE)}")
    except (StackError, Misconfigured) as error:
        sys.exit(f"model: {error}")
