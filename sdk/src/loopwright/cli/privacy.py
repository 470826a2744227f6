"""`loopwright export` and `loopwright certificate`: what a user may ask for, and proof of their erasure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape

from loopwright.certificates import InvalidCertificate, verify
from loopwright.cli.common import (
    EXIT_REFUSED,
    AsJson,
    FeedbackUrl,
    connect,
    err,
    out,
    print_error,
    print_json,
)
from loopwright.models import SignedCertificate

certificate = typer.Typer(help="Verify certificates of erasures.", no_args_is_help=True)


def export(
    context: typer.Context,
    user: Annotated[str, typer.Option("--user", help="Your id of the user, as in the feedback you sent.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write.", show_default="standard output")
    ] = None,
    feedback_url: FeedbackUrl = None,
) -> None:
    """Export everything that the log has about a user, as lines of JSON. Needs a key with the scope `erase`.

    Example: loopwright export --user u-17 -o u-17.jsonl
    """
    with connect(context, False, feedback_url=feedback_url) as loop:
        records = loop.export(user)
    text = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
    if output is None:
        out.print(text, markup=False, end="")
        return
    output.write_text(text, encoding="utf-8")
    err.print(f"{len(records)} records of {escape(user)} written to {escape(str(output))}")


@certificate.command("verify")
def verify_certificate(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The certificate.")],
    public_key: Annotated[
        str | None,
        typer.Option(
            "--public-key",
            help="The deployment's public key.",
            show_default="the key of the feedback service",
        ),
    ] = None,
    feedback_url: FeedbackUrl = None,
    as_json: AsJson = False,
) -> None:
    """Check that a certificate was signed by the deployment and not altered. With a public key, works offline.

    Example: loopwright certificate verify erasure.json
    """
    try:
        signed = SignedCertificate.model_validate_json(file.read_bytes())
    except ValidationError:
        print_error(
            f"{file} is not a certificate: expected the file that `loopwright erase --certificate` wrote"
        )
        raise typer.Exit(EXIT_REFUSED) from None
    key = public_key
    if key is None:
        with connect(context, as_json, feedback_url=feedback_url) as loop:
            key = loop.certificate_key()
    try:
        verify(signed, key)
    except (InvalidCertificate, ImportError) as error:
        print_error(str(error))
        raise typer.Exit(EXIT_REFUSED) from None
    if as_json:
        print_json({"valid": True, "certificate": signed.certificate})
        return
    out.print("[bold]valid[/] signed by this key and not altered")
    for name, value in signed.certificate.items():
        if not isinstance(value, list | dict):
            out.print(f"  {escape(name):<24} {escape(str(value))}")
