"""`loopwright keys`: make, list and revoke API keys in the file that the services read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from loopwright.api_keys import SCOPES, ApiKeyEntry, ApiKeyFile, KeyFileError
from loopwright.cli.common import EXIT_REFUSED, AsJson, err, out, print_error, print_json

KEYS_VARIABLE = "LOOPWRIGHT_API_KEYS"
LIFETIME = re.compile(r"([1-9]\d{0,4})([dh])")

app = typer.Typer(
    help="Make, list and revoke API keys. Services follow within seconds.", no_args_is_help=True
)

KeysFile = Annotated[
    Path | None,
    typer.Option(
        "--file",
        envvar=KEYS_VARIABLE,
        help="File of API keys, which the services read (their setting LOOPWRIGHT_API_KEYS).",
        show_default=False,
    ),
]


@app.command("create")
def create(
    name: Annotated[
        str, typer.Argument(help="Name of the key. Commands and erasures record it.", show_default=False)
    ],
    scopes: Annotated[
        list[str] | None,
        typer.Option("--scope", "-s", help=f"What the key allows; repeatable: {', '.join(SCOPES)}."),
    ] = None,
    all_scopes: Annotated[bool, typer.Option("--all-scopes", help="Allow everything.")] = False,
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires", metavar="90d", help="Lifetime in days (d) or hours (h).", show_default="none"
        ),
    ] = None,
    file: KeysFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once. Only its digest is stored.

    Example: loopwright keys create shop-backend --scope ingest --scope read
    """
    if bool(scopes) == all_scopes:
        raise typer.BadParameter("either --scope (repeatable) or --all-scopes must be given")
    lifetime = _parse_lifetime(expires)
    with _errors(as_json):
        key, entry = _open(file).create(name, SCOPES if all_scopes else scopes or (), lifetime)
    if as_json:
        print_json({"key": key, **entry.public(_now())})
        return
    out.print(key, markup=False)
    until = f", until {entry.expires_at:%Y-%m-%d %H:%M} UTC" if entry.expires_at else ""
    err.print(
        f"{escape(entry.name)} may {', '.join(entry.scopes)}{until}. Keep the key: it is not shown again."
    )


@app.command("list")
def list_keys(file: KeysFile = None, as_json: AsJson = False) -> None:
    """List all keys, without their secrets.

    Example: loopwright keys list
    """
    with _errors(as_json):
        keys = _open(file)
        entries = keys.entries()
    now = _now()
    if as_json:
        print_json([entry.public(now) for entry in entries])
        return
    if not entries:
        out.print(f"{keys.path} has no keys")
        return
    table = Table("name", "id", "scopes", "created", "state", box=None)
    for entry in entries:
        table.add_row(
            escape(entry.name),
            entry.id,
            ", ".join(entry.scopes),
            f"{entry.created_at:%Y-%m-%d}",
            _state(entry, now),
        )
    out.print(table)


@app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="Name or id of the key.", show_default=False)],
    file: KeysFile = None,
    as_json: AsJson = False,
) -> None:
    """Revoke a key. All services refuse it within seconds; its name stays taken.

    Example: loopwright keys revoke shop-backend
    """
    with _errors(as_json):
        entry = _open(file).revoke(name)
    if as_json:
        print_json(entry.public(_now()))
    else:
        out.print(f"{escape(entry.name)} is revoked")


def _open(file: Path | None) -> ApiKeyFile:
    if file is None:
        raise KeyFileError(
            f"no file of API keys is given: name it with --file or {KEYS_VARIABLE}, for example --file keys/keys.json"
        )
    return ApiKeyFile(file)


@contextmanager
def _errors(as_json: bool) -> Iterator[None]:
    try:
        yield
    except KeyFileError as error:
        if as_json:
            print_json({"error": {"code": error.code, "message": str(error)}}, err)
        else:
            print_error(str(error))
        raise typer.Exit(EXIT_REFUSED) from None


def _parse_lifetime(text: str | None) -> timedelta | None:
    if text is None:
        return None
    match = LIFETIME.fullmatch(text)
    if match is None:
        raise typer.BadParameter(
            f"invalid --expires {text!r}: expected days or hours, for example 90d or 12h"
        )
    return timedelta(**{{"d": "days", "h": "hours"}[match[2]]: int(match[1])})


def _state(entry: ApiKeyEntry, now: datetime) -> str:
    state = entry.state(now)
    if state == "active" and entry.expires_at is not None:
        return f"active until {entry.expires_at:%Y-%m-%d %H:%M}"
    return state


def _now() -> datetime:
    return datetime.now(timezone.utc)
