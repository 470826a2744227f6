"""Job that prepares the base model for inference and the trainer: `python -m deploy.docker.model`.

It is the only container that needs the network. A Hugging Face model is downloaded once and then pinned, because a
newer revision would be a different base.
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
PINNED_FILE = "pinned.json"
"""Maps each downloaded Hugging Face id to its folder."""


def prepare(model: str, state: Path) -> str:
    """Return the folder of the base model, downloading it if necessary.

    Args:
        model: A folder, a Hugging Face id, or empty for the default model.
        state: Folder whose `models` subfolder gets what is downloaded.

    Raises:
        StackError: if the folder is missing or not readable, or the default model cannot be prepared.
        Misconfigured: if the model cannot be downloaded or has no safetensors weights.

    """
    if not model:
        return str(ensure_base_model(state, print_line))
    if Path(model).is_absolute():
        if not Path(model).is_dir():
            raise StackError(
                f"LOOPWRIGHT_BASE_MODEL={model} is not a folder in the containers. Set LOOPWRIGHT_MODELS_DIR to a "
                "folder of this machine; the containers see it as /models."
            )
        try:
            return str(find_base(model).path)
        except PermissionError as error:
            raise StackError(
                f"{error.filename} is not readable in the containers, which run as user {os.getuid()}. "
                "Make the model readable for all users: chmod -R a+rX FOLDER."
            ) from error
    return fetch_once(model, state / "models" / PINNED_FILE)


def fetch_once(model: str, pinned: Path) -> str:
    """Return the folder of a Hugging Face model; download it unless `pinned` lists it."""
    folders: dict[str, str] = json.loads(pinned.read_text()) if pinned.exists() else {}
    if model in folders and Path(folders[model]).is_dir():
        return folders[model]
    print_line(f"downloading {model}")
    folders[model] = str(find_base(model).path)
    # Written last, so that an interrupted download is not taken for a complete model.
    part = pinned.with_suffix(".part")
    part.write_text(json.dumps(folders))
    part.replace(pinned)
    return folders[model]


def print_line(line: str) -> None:
    """Print one line of progress and flush it."""
    print(line, flush=True)


if __name__ == "__main__":
    try:
        print_line(f"base model: {prepare(os.environ.get('LOOPWRIGHT_BASE_MODEL', ''), STATE)}")
    except (StackError, Misconfigured) as error:
        sys.exit(f"model: {error}")
