"""The trainer's service stays small: libraries for training and for comparing texts load in its child processes."""

from __future__ import annotations

import subprocess
import sys

LARGE_LIBRARIES = frozenset(
    {
        "sklearn",
        "scipy",
        "torch",
        "transformers",
        "pyarrow",
        "pandas",
        "trl",
        "peft",
        "accelerate",
        "datasets",
    }
)


def large_libraries_after(statement: str) -> set[str]:
    """Return which large libraries a fresh interpreter has loaded after a statement."""
    program = f"import sys\n{statement}\nprint(*(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return LARGE_LIBRARIES & set(done.stdout.split())


def test_service_starts_without_large_libraries() -> None:
    assert large_libraries_after("import services.trainer.__main__") == set()


def test_loaded_large_library_is_noticed() -> None:
    """Negative control."""
    assert "sklearn" in large_libraries_after("import services.trainer.dataset.snapshot")
