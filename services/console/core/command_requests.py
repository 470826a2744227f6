"""Requests of operators, and their conversion to commands on the log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.console.core.projection import Projection
from shared.commands import COMMAND, EXECUTORS, Command
from shared.dead_letter_replay import POSITION_PATTERN
from shared.errors import Conflict, Malformed, Rejected, UnknownVersion
from shared.events import Id, Line
from shared.request_values import check_json_numbers, readable_fault

KINDS: Final[tuple[str, ...]] = tuple(
    kind.model_fields["kind"].default for kind in get_args(get_args(Command)[0])
)
DRY_RUN_KINDS: Final = ("train_now", "collect_garbage")
"""Kinds of command that have a dry run."""
SKIP_FIELDS: Final = ("topic", "partition", "offset", "reason")
MAX_FAULTS: Final = 5


class CommandRequest(BaseModel):
    """Request body of `POST /api/commands`. Which of the optional fields are needed depends on the kind."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    kind: str = Field(max_length=32, description=", ".join(KINDS))
    line: Line | None = Field(None, description="The default is the console's line.")
    command_id: Id | None = Field(
        None,
        description="Id of the command, to send it again safely: a command is executed once. The default is a new id. "
        "Also accepted as the header Idempotency-Key.",
    )
    version: str | None = Field(None, max_length=128)
    leaving: str | None = Field(
        None,
        max_length=128,
        description="For rollback: the version to roll back from. If another serves, nothing changes.",
    )
    dry_run: bool | None = Field(
        None, description="Only report what would be done. For train_now and collect_garbage."
    )
    again: bool | None = Field(None, description="For train_now: train also if nothing is new.")
    response_ids: list[Id] | None = None
    positions: list[Annotated[str, Field(pattern=POSITION_PATTERN)]] | None = Field(
        None, description="Positions of dead letters, as `<partition>-<offset>`."
    )
    topic: str | None = Field(None, max_length=128, description="For skip: the topic of the record.")
    partition: int | None = Field(None, description="For skip: the halted partition.")
    offset: int | None = Field(None, description="For skip: the offset of the record at which it halted.")
    reason: str | None = Field(None, max_length=500, description="For skip: why the record may be skipped.")


class UnknownKind(Rejected):
    """The kind of command does not exist."""

    code = "unknown_kind"


class NoExecutor(Rejected):
    """No service executes this kind of command."""

    code = "no_executor"


def parse_command_request(raw: bytes, idempotency_key: str | None = None) -> CommandRequest:
    """Parse a request body and the header Idempotency-Key, which is another name of `command_id`.

    Raises:
        Malformed: if the body does not fit, or if the header names another id than the body.

    """
    check_json_numbers(raw)
    try:
        request = CommandRequest.model_validate_json(raw, strict=True)
        if idempotency_key is None or idempotency_key == request.command_id:
            return request
        if request.command_id is not None:
            raise Malformed(
                f"command_id is {request.command_id}, but Idempotency-Key is {idempotency_key}: send one of them"
            )
        with_key = request.model_dump(exclude_none=True) | {"command_id": idempotency_key}
        return CommandRequest.model_validate(with_key, strict=True)
    except ValidationError as error:
        raise Malformed(_describe_faults(error)) from None


def to_command(
    request: CommandRequest,
    state: Projection,
    *,
    line: str,
    command_id: str,
    issued_by: str,
    now: datetime,
    executors: Mapping[str, str] = EXECUTORS,
) -> Command:
    """Return the record for `operator.commands`.

    Args:
        request: the operator's request.
        state: the console's state, which knows the versions of each line.
        line: the line if `request` names none.
        command_id: the id of the command if `request` has none.
        issued_by: the name of the API key that `request` came with.
        now: the time at which the request was received.
        executors: kind of command -> the service that executes it.

    Raises:
        UnknownKind: if the kind does not exist.
        NoExecutor: if no service executes it.
        UnknownVersion: if the line has no such version.
        Malformed: if the fields do not fit the kind.
        Conflict: if another command has this id.

    """
    if request.kind not in KINDS:
        raise UnknownKind(f"unknown command {request.kind!r}: use one of {', '.join(KINDS)}")
    if request.kind not in executors:
        raise NoExecutor(f"no service executes {request.kind} yet: use one of {', '.join(sorted(executors))}")
    if request.dry_run and request.kind not in DRY_RUN_KINDS:
        raise Malformed(
            f"dry_run is not available for {request.kind}: leave it out, or use it with "
            f"{' or '.join(DRY_RUN_KINDS)}"
        )
    if request.leaving is not None and request.kind != "rollback":
        raise Malformed(f"leaving is not available for {request.kind}: leave it out, or use it with rollback")
    if request.again and (request.kind != "train_now" or request.dry_run):
        raise Malformed("again is available for train_now without dry_run: leave one of them out")
    for name in SKIP_FIELDS if request.kind != "skip" else ():
        if getattr(request, name) is not None:
            raise Malformed(f"{name} is not available for {request.kind}: leave it out, or use it with skip")
    line = request.line or line
    fields: dict[str, Any] = request.model_dump(mode="json", exclude_none=True)
    fields = (
        {"command_id": command_id}
        | fields
        | {
            "line": line,
            "issued_by": issued_by,
            "issued_at": now.isoformat(),
        }
    )
    try:
        command = COMMAND.validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        raise Malformed(_describe_faults(error)) from None
    known = state.commands.get(command.command_id)
    if known is not None and known.content_digest() != command.content_digest():
        raise Conflict(
            f"command id {command.command_id} was used for another command ({known.kind}): choose a new id"
        )
    versions = state.versions.get(line, {})
    for version in (request.version, request.leaving):
        if version is not None and version not in versions:
            raise UnknownVersion(
                f"line {line} has no version {version}: check its name. Its versions are: "
                f"{', '.join(sorted(versions)) or 'none yet'}"
            )
    return command


def _describe_faults(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_input=False, include_context=False)[:MAX_FAULTS]
    return "; ".join(
        f"{'.'.join(map(str, fault['loc'])) or 'body'}: {readable_fault(fault)}" for fault in faults
    )
