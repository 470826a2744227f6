"""An adapter that changes nothing, through which servers on CPUs answer for the base.

vLLM's code for CPUs has no slot for "no adapter": in a batch with requests of versions, it adds the adapter in its last
slot to requests of the base (vLLM pull request 49656, open in November 2026). With this adapter every request has one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from services.inference.engine.adapter_files import CONFIG_FILE, WEIGHT_PREFIX, WEIGHTS_FILE
from services.inference.engine.vllm.adapter_check import Shapes

LAYERS = ("o_proj", "down_proj", "q_proj", "dense", "c_proj")
"""Linear layers of common models; vLLM knows adapters for each of them."""
LABEL = re.compile(r'(\w+)="([^"]*)"')


def write_null_adapter(folder: Path, base: Shapes) -> bool:
    """Write the adapter for one layer of the base. Return False if the base has no layer of a known name."""
    found = next(
        (
            name.removesuffix(".weight")
            for layer in LAYERS
            for name, shape in base.items()
            if name.endswith(f".{layer}.weight") and len(shape) == 2
        ),
        None,
    )
    if found is None:
        return False
    out_features, in_features = base[f"{found}.weight"]
    weights = {
        f"{WEIGHT_PREFIX}{found}.lora_A.weight": np.zeros((1, in_features), np.float32),
        f"{WEIGHT_PREFIX}{found}.lora_B.weight": np.zeros((out_features, 1), np.float32),
    }
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": [found.rpartition(".")[2]]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    save_file(weights, folder / WEIGHTS_FILE)
    return True


def runs_on_cpu(metrics: str) -> bool:
    """Return whether the metrics are those of a server on CPUs, by the defaults of its cache."""
    line = next((line for line in metrics.splitlines() if line.startswith("vllm:cache_config_info{")), "")
    labels = dict(LABEL.findall(line))
    return (
        labels.get("block_size") == "128"
        and labels.get("user_specified_block_size") == "False"
        and labels.get("mamba_ssm_cache_dtype") == "float32"
    )
