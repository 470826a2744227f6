"""Settings common to all services, read from the environment only.

Each service extends `Settings` in its own `settings.py` and sets its own `env_prefix`: the field `port` of the trainer
is `LOOPWRIGHT_TRAINER_PORT`. The common fields below have the same name for every service: `LOOPWRIGHT_LINE`, and
the two names that are customary elsewhere, `KAFKA_BOOTSTRAP_SERVERS` and `REDIS_URL`. Services log their settings at
start with secrets masked.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    IPvAnyNetwork,
    PlainValidator,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from shared.chat_format import RESERVED_TEMPLATE_KWARGS
from shared.errors import Misconfigured
from shared.events import Line
from shared.kafka_connection import NAMESPACE_PATTERN, KafkaConnection, KafkaProperties

SAMPLE_SECRETS = frozenset({"change-me", "changeme", "secret", "password", "demo", "loopwright"})
MIN_SECRET = 16
PASSWORD = re.compile(r"//[^/@\s]*@")
"""User and password in a URL."""


def _none_if_empty(value: object) -> object:
    return value or None


def common(name: str, variable: str | None = None) -> AliasChoices:
    """Return the names of a field that all services share: its environment variable, and its name in code."""
    return AliasChoices(variable or f"LOOPWRIGHT_{name.upper()}", name)


class Settings(BaseSettings):
    """Settings that every service has."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    kafka_bootstrap_servers: str = Field(
        "127.0.0.1:9092",
        validation_alias=common("kafka_bootstrap_servers", "KAFKA_BOOTSTRAP_SERVERS"),
        description="Kafka brokers to connect to, as a comma-separated list of host:port.",
    )
    kafka_config: Annotated[KafkaProperties, NoDecode, PlainValidator(KafkaProperties.parse)] = Field(
        default_factory=KafkaProperties,
        validation_alias=common("kafka_config"),
        description="librdkafka properties of every Kafka client, such as TLS and SASL: the path of a file with a "
        "`key=value` per line or a JSON object, or the JSON object itself.",
    )
    namespace: str = Field(
        "",
        pattern=NAMESPACE_PATTERN,
        validation_alias=common("namespace"),
        description="Prefix of the deployment's topics, consumer groups and transactional ids, joined with a dot. It "
        "is fixed when a deployment is created. Deployments on one Kafka cluster need different namespaces.",
    )
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        validation_alias=common("redis_url", "REDIS_URL"),
        description="URL of the Redis server. Redis holds only what may be lost at any moment.",
    )
    partitions: int = Field(
        24,
        ge=1,
        le=1024,
        validation_alias=common("partitions"),
        description="Number of partitions (P) of the partitioned topics. It is fixed when a deployment is created, and "
        "limits how many processors can ever work at the same time.",
    )
    line: Line = Field(
        "assistant",
        validation_alias=common("line"),
        description="Line of versions that this service works for.",
    )
    base_model: str = Field(
        "",
        validation_alias=common("base_model"),
        description="Hugging Face id or local folder of the line's pinned base model.",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        validation_alias=common("chat_template_kwargs"),
        description="Arguments of the base's chat template, as JSON, in serving, training and the gate: "
        '{"enable_thinking": false} for reasoning bases.',
    )
    data_dir: Path = Field(
        Path(".loopwright/data"),
        validation_alias=common("data_dir"),
        description="Folder for data that must survive restarts: spool, SQLite files, snapshots.",
    )
    artifacts: Annotated[str, BeforeValidator(str)] = Field(
        ".loopwright/artifacts",
        validation_alias=common("artifacts"),
        description="Artifact store: a folder, or a URL such as s3://bucket/prefix. "
        "Credentials come from the environment.",
    )
    pseudonym_key: SecretStr | None = Field(
        None,
        validation_alias=common("pseudonym_key"),
        description="Secret that keys the pseudonyms of user ids. One per deployment.",
    )
    host: str = Field(
        "127.0.0.1", validation_alias=common("host"), description="Address that the service listens on."
    )
    hosts: frozenset[str] = Field(
        frozenset(),
        validation_alias=common("hosts"),
        description="Host names by which the services may be addressed, besides localhost and IP addresses, as a JSON "
        'list: ["loop.example.org"]. Requests with any other Host header get 403.',
    )
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        (),
        validation_alias=common("trusted_proxies"),
        description="Addresses or networks of reverse proxies, as a JSON list. Only their X-Forwarded-Host and "
        "X-Forwarded-Proto are used.",
    )
    api_keys: Annotated[Path | None, BeforeValidator(_none_if_empty)] = Field(
        None,
        validation_alias=common("api_keys"),
        description="File of API keys, written by `loopwright keys`. It is read again when it changes. Without this "
        "setting no key is needed, and the services listen on loopback only.",
    )
    allow_without_keys: bool = Field(
        False,
        validation_alias=common("allow_without_keys"),
        description="Listen on other addresses than loopback although no API keys are configured. Only where something "
        "else decides who can connect, such as ports that are published on 127.0.0.1.",
    )
    log_level: str = Field(
        "INFO", validation_alias=common("log_level"), description="Lowest level that is logged."
    )
    demo: bool = Field(
        False,
        validation_alias=common("demo"),
        description="Accept sample secrets. Never set this in a deployment with real users.",
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _only_arguments_of_templates(cls, value: dict[str, Any]) -> dict[str, Any]:
        reserved = sorted(RESERVED_TEMPLATE_KWARGS & value.keys())
        if reserved:
            raise ValueError(f"{', '.join(reserved)}: this is not an argument of chat templates")
        return value

    @model_validator(mode="after")
    def _no_sample_secrets(self) -> Self:
        for name, value in self:
            if isinstance(value, SecretStr) and not self.demo:
                refuse_sample(variable_of(type(self), name), value.get_secret_value())
        return self

    @property
    def kafka(self) -> KafkaConnection:
        """How the service reaches Kafka."""
        return KafkaConnection(self.kafka_bootstrap_servers, self.namespace, self.kafka_config)

    @property
    def artifact_cache(self) -> Path:
        """Folder for fetched artifacts if their store is behind a URL. Services may share it."""
        return self.data_dir / "artifacts"

    def require_pseudonym_key(self) -> bytes:
        """Return the pseudonym key.

        Raises:
            Misconfigured: if it is not set.

        """
        if self.pseudonym_key is None:
            raise Misconfigured(
                "LOOPWRIGHT_PSEUDONYM_KEY is not set: it keys the pseudonyms of user ids. "
                "Generate one with `python -c 'import secrets; print(secrets.token_urlsafe(32))'` and keep it safe."
            )
        return self.pseudonym_key.get_secret_value().encode()

    def masked(self) -> dict[str, str]:
        """Return all settings for the log, with secrets and passwords in URLs masked."""
        return {name: PASSWORD.sub("//***@", str(value)) for name, value in self}


def variable_of(cls: type[BaseSettings], name: str) -> str:
    """Return the environment variable that sets the field `name`."""
    alias = cls.model_fields[name].validation_alias
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    return f"{cls.model_config.get('env_prefix', '')}{name.upper()}"


def refuse_sample(name: str, value: str) -> None:
    """Raise `ValueError` if a secret is a well-known sample or shorter than `MIN_SECRET` characters."""
    if value.lower() in SAMPLE_SECRETS or len(value) < MIN_SECRET:
        raise ValueError(
            f"{name} is a sample or shorter than {MIN_SECRET} characters: generate your own secret"
        )


S = TypeVar("S", bound=Settings)


def load(cls: type[S]) -> S:
    """Read settings from the environment.

    Raises:
        Misconfigured: if any is invalid; the message names each environment variable at fault.

    """
    try:
        return cls()
    except ValidationError as error:
        faults = "; ".join(
            f"{_variable_at_fault(cls, e['loc'])}: {e['msg']}" for e in error.errors(include_input=False)
        )
        raise Misconfigured(f"invalid settings: {faults}") from None
    except SettingsError as error:
        # A list or similar value that is not JSON; the message names the field.
        raise Misconfigured(f'invalid settings: {error}; write lists as JSON: ["one", "two"]') from None


def _variable_at_fault(cls: type[BaseSettings], location: tuple[int | str, ...]) -> str:
    if not location:
        return cls.__name__
    name, *rest = (str(part) for part in location)
    return ".".join([variable_of(cls, name) if name in cls.model_fields else name, *rest])
