"""From what an operator sends to a command on the log. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.console.core.projection import Projection
from shared.commands import COMMAND, EXECUTORS, Command
from shared.dead_letter_replay import POSITION_PATTERN
from shared.errors import Malformed, Rejected, UnknownVersion
from shared.events import Id, Line

KINDS: tuple[str, ...] = tuple(kind.model_fields["kind"].default for kind in get_args(get_args(Command)[0]))

DRY = ("train_now", "collect_garbage")
"""Kinds that can be asked what they would do."""


class CommandRequest(BaseModel):
    """The body of `POST /api/commands`. `version` and the lists where the kind needs them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    kind: str = Field(max_length=32, description=", ".join(KINDS))
    line: Line | None = None
    version: str | None = Field(None, max_length=128)
    dry_run: bool | None = Field(
        None, description="of train_now and collect_garbage: only say what would be done"
    )
    response_ids: list[Id] | None = None
    positions: list[Annotated[str, Field(pattern=POSITION_PATTERN)]] | None = Field(
        None, description="of dead letters"
    )


class UnknownKind(Rejected):
    """No such command."""

    code = "unknown_kind"


class NoExecutor(Rejected):
    """A command that no service of this deployment carries out."""

    code = "no_executor"


def parse_command_request(raw: bytes) -> CommandRequest:
    """Raises `Malformed`."""
    try:
        return CommandRequest.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise Malformed(_told(error)) from None


def to_command(
    order: CommandRequest,
    state: Projection,
    *,
    line: str,
    command_id: str,
    now: datetime,
    executors: Mapping[str, str] = EXECUTORS,
) -> Command:
    """Raises `UnknownKind`, `NoExecutor`, `UnknownVersion` or `Malformed`, each saying what would do."""
    if order.kind not in KINDS:
        raise UnknownKind(f"there is no command {order.kind!r}; there are: {', '.join(KINDS)}")
    if order.kind not in executors:
        raise NoExecutor(
            f"no service carries out {order.kind} yet; those that are: {', '.join(sorted(executors))}"
        )
    if order.dry_run and order.kind not in DRY:
        raise Malformed(f"dry_run: there is none of {order.kind}, only of {' and '.join(DRY)}")
    line = order.line or line
    fields: dict[str, Any] = order.model_dump(mode="json", exclude_none=True)
    fields |= {"line": line, "command_id": command_id, "issued_at": now.isoformat()}
    try:
        command = COMMAND.validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        raise Malformed(_told(error)) from None
    if order.version is not None and order.version not in state.versions.get(line, {}):
        known = ", ".join(sorted(state.versions.get(line, {}))) or "none yet"
        raise UnknownVersion(f"line {line} has no version {order.version}; it has: {known}")
    return command


def _told(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_input=False, include_context=False)[:5]
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in faults)
