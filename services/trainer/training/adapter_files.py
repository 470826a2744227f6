"""Write what a run trained: the adapter, or all weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from services.trainer.files import sync_folder, sync_tree, write_whole

if TYPE_CHECKING:
    from services.trainer.base.model import Model


def save_adapter(model: Model, target: Path, base_name: str) -> None:
    """Write weights and configuration to `target`, which appears only when complete.

    The configuration names the base by `base_name`, not by its path on this machine. A model without an adapter is
    written as a whole, in bfloat16.
    """
    staging = target.with_name(f".{target.name}.incoming")
    shutil.rmtree(staging, ignore_errors=True)
    saved: Any = model if isinstance(model, PeftModel) else model.to(torch.bfloat16)  # type: ignore[arg-type]
    saved.save_pretrained(str(staging))
    for name, field in (("adapter_config.json", "base_model_name_or_path"), ("config.json", "_name_or_path")):
        if (staging / name).exists():
            config = json.loads((staging / name).read_text()) | {field: base_name}
            if isinstance(config.get("target_modules"), list):
                config["target_modules"].sort()  # PEFT keeps a set, whose order differs between processes
            write_whole(staging / name, (json.dumps(config, indent=1, sort_keys=True) + "\n").encode())
    # PEFT writes a model card with the path of the base in it.
    (staging / "README.md").unlink(missing_ok=True)
    sync_tree(staging)
    staging.rename(target)
    sync_folder(target.parent)
