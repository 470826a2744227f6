"""The command `loopwright`. Exit status: 0 success, 1 refused, 2 usage error, 3 no result from the service."""

from __future__ import annotations

from loopwright.cli import (
    connect,
    dead_letters,
    erase,
    feedback,
    gate,
    import_,
    keys,
    lineage,
    operator,
    privacy,
    quarantine,
    watch,
)
from loopwright.cli.common import app

app.command("send")(feedback.send)
app.add_typer(import_.app, name="import")
app.add_typer(connect.app, name="connect")
app.command("receipt")(feedback.receipt)
app.command("erase")(erase.erase)
app.command("export")(privacy.export)
app.add_typer(privacy.certificate, name="certificate")
app.add_typer(keys.app, name="keys")
app.command("status")(operator.status)
app.command("watch")(watch.watch)
app.command("versions")(operator.versions)
app.command("lineage")(lineage.lineage)
app.command("diff")(lineage.diff)
app.command("gate")(gate.gate)
app.add_typer(operator.rollout, name="rollout")
app.add_typer(operator.train, name="train")
app.add_typer(operator.artifacts, name="artifacts")
app.add_typer(operator.dataset, name="dataset")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(dead_letters.app, name="dead-letters")

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line and exit."""
    app()
