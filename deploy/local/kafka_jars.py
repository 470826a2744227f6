"""Download Apache Kafka's jars with Maven."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from deploy.local.atomic_dirs import atomic_dir, exclusive_lock, is_complete
from deploy.local.errors import StackError
from deploy.local.java import KAFKA_ALTERNATIVE, find_java
from deploy.local.processes import Program
from deploy.local.run_job import run_job

KAFKA_VERSION = "4.3.1"
LOG4J_VERSION = "2.25.2"
JARS = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    # StorageTool and the other classes that Kafka's shell scripts run.
    f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}",
    f"org.apache.logging.log4j:log4j-core:{LOG4J_VERSION}",
    # Kafka logs through slf4j 1.7; this is the binding for it.
    f"org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J_VERSION}",
)
COPY_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"

Progress = Callable[[str], None]
"""Callback that gets one line of progress."""


def pom_xml() -> str:
    """Return a Maven project file with these dependencies."""
    dependencies = "\n".join(
        f"    <dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
        f"<version>{version}</version></dependency>"
        for group, artifact, version in (jar.split(":") for jar in JARS)
    )
    return f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>loopwright</groupId>
  <artifactId>local-kafka</artifactId>
  <version>1</version>
  <dependencies>
{dependencies}
  </dependencies>
</project>
"""


def ensure_jars(home: Path, progress: Progress) -> Path:
    """Return the folder `home`/libs with Kafka's jars; download them if it is not complete.

    After an interruption, Maven continues from its own cache.

    Raises:
        StackError: if Java or Maven is missing, or the download fails.

    """
    libs, facts = home / "libs", {"jars": list(JARS)}
    with exclusive_lock(home / "lock"):
        if is_complete(libs, facts):
            return libs
        java = find_java()
        maven = shutil.which("mvn")
        if maven is None:
            raise StackError(f"Maven is missing: install Maven 3.6+ (the mvn command), {KAFKA_ALTERNATIVE}.")
        progress(f"Kafka {KAFKA_VERSION}: downloading with Maven (about 55 MB)")
        (home / "pom.xml").write_text(pom_xml())
        with atomic_dir(libs, facts) as part:
            run_maven(maven, java, home / "pom.xml", part, progress)
        progress(f"Kafka {KAFKA_VERSION}: ready")
        return libs


def run_maven(maven: str, java: str, pom_file: Path, target: Path, progress: Progress) -> None:
    """Let Maven copy the jars into `target`; report progress after every 20 downloaded files."""
    command = [
        maven, "--batch-mode", "--strict-checksums", "-Dstyle.color=never",
        "-f", str(pom_file.resolve()), COPY_GOAL,
        f"-DoutputDirectory={target.resolve()}", "-DincludeScope=runtime",
    ]  # fmt: skip
    env = {}
    if not shutil.which("java") and "JAVA_HOME" not in os.environ:
        env["JAVA_HOME"] = str(Path(java).resolve().parent.parent)
    downloaded = 0
    errors: list[str] = []

    def read_line(line: str) -> None:
        nonlocal downloaded
        if "Downloaded from" in line:
            downloaded += 1
            if downloaded % 20 == 0:
                progress(f"Kafka {KAFKA_VERSION}: {downloaded} files downloaded")
        elif "ERROR" in line:
            errors.append(line.strip())

    status, _ = run_job(Program("fetch-kafka", command, env), pom_file.parent / "jobs", read_line)
    if status != 0:
        details = "\n".join(errors[:5]) or f"exit status {status}, no error message"
        raise StackError(
            f"Maven could not download Kafka {KAFKA_VERSION}. Run it again to continue.\n{details}"
        )
