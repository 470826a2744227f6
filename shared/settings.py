"""Settings that every service has. Each service extends `Settings` in its own `settings.py`.

Environment only. Names are `LOOPWRIGHT_...`, but for the two that the whole field knows: `KAFKA_BOOTSTRAP_SERVERS` and
`REDIS_URL`. Settings are printed at start with secrets masked.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from shared.errors import Misconfigured
from shared.events import Line

SAMPLE_SECRETS = frozenset({"change-me", "changeme", "secret", "password", "demo", "loopwright"})
MIN_SECRET = 16
PASSWORD = re.compile(r"//[^/@\s]*@")
"""User and password in a URL."""


class Settings(BaseSettings):
    """Common to all services."""

    model_config = SettingsConfigDict(
        env_prefix="LOOPWRIGHT_", extra="ignore", frozen=True, populate_by_name=True
    )

    kafka_bootstrap_servers: str = Field(
        "127.0.0.1:9092", validation_alias=AliasChoices("KAFKA_BOOTSTRAP_SERVERS", "kafka_bootstrap_servers")
    )
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0", validation_alias=AliasChoices("REDIS_URL", "redis_url")
    )
    partitions: int = Field(6, ge=1, le=1024, description="P; fixed when the deployment is made")
    line: Line = Field("assistant", description="the line this service works for")
    base_model: str = Field("", description="Hugging Face id or local folder of the line's pinned base")
    data_dir: Path = Field(
        Path(".loopwright/data"), description="spool, SQLite, snapshots: survives restarts"
    )
    artifacts: Annotated[str, BeforeValidator(str)] = Field(
        ".loopwright/artifacts",
        description="the artifact store: a folder, or a URL such as s3://bucket/prefix; credentials by the environment",
    )
    pseudonym_key: SecretStr | None = Field(
        None, description="keys the pseudonyms of user ids; one per deployment"
    )
    host: str = Field("127.0.0.1", description="address the service listens on")
    log_level: str = "INFO"
    demo: bool = Field(False, description="allows sample secrets; never set it where real users are")

    @model_validator(mode="after")
    def _no_sample_secrets(self) -> Self:
        for name, value in self:
            if isinstance(value, SecretStr) and not self.demo:
                refuse_sample(variable_of(type(self), name), value.get_secret_value())
        return self

    @property
    def artifact_cache(self) -> Path:
        """Where artifacts are kept to be read, if their store is behind a URL. Services may share it."""
        return self.data_dir / "artifacts"

    def require_pseudonym_key(self) -> bytes:
        """Raises `Misconfigured` where there is none."""
        if self.pseudonym_key is None:
            raise Misconfigured(
                "LOOPWRIGHT_PSEUDONYM_KEY is not set: it keys the pseudonyms of user ids. "
                "Make one with `python -c 'import secrets; print(secrets.token_urlsafe(32))'` and keep it."
            )
        return self.pseudonym_key.get_secret_value().encode()

    def masked(self) -> dict[str, str]:
        """For the log at start: secrets, and passwords within addresses, show as stars."""
        return {name: PASSWORD.sub("//***@", str(value)) for name, value in self}


def variable_of(cls: type[BaseSettings], name: str) -> str:
    """The environment variable that sets a field."""
    alias = cls.model_fields[name].validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"LOOPWRIGHT_{name.upper()}"


def refuse_sample(name: str, value: str) -> None:
    if value.lower() in SAMPLE_SECRETS or len(value) < MIN_SECRET:
        raise ValueError(f"{name} is a sample or shorter than {MIN_SECRET} characters: make one of your own")


S = TypeVar("S", bound=Settings)


def load(cls: type[S]) -> S:
    """Reads the environment. Raises `Misconfigured` naming each variable at fault."""
    try:
        return cls()
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(p) for p in e['loc']) or cls.__name__}: {e['msg']}"
            for e in error.errors(include_input=False)
        )
        raise Misconfigured(f"settings: {faults}") from None
    except SettingsError as error:
        # Of a list or the like that is no JSON; the message names the field.
        raise Misconfigured(f'settings: {error}; lists are written as JSON: ["one", "two"]') from None
