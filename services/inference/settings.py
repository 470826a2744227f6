"""Settings of inference: environment variables `LOOPWRIGHT_INFERENCE_*`, and those of `shared/settings.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings


class InferenceSettings(Settings):
    """Settings of one inference process: model, batch, request limits, delivery and shutdown."""

    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_INFERENCE_")

    port: int = Field(8000, ge=0, le=65535, description="Port of the HTTP API. 0 picks a free one.")
    engine: Literal["transformers", "vllm"] = Field(
        "transformers",
        description="What generates the answers: `transformers`, in this process; `vllm`, vLLM servers.",
    )
    engine_urls: str = Field(
        "",
        description="With `vllm`, the URLs of the servers, separated by commas, such as `http://vllm:8000`. A host "
        "name with several addresses is a server per address.",
    )
    engine_model: str = Field(
        "",
        description="With `vllm`, the name or path under which the servers serve the base, if it is not "
        "`LOOPWRIGHT_BASE_MODEL`.",
    )
    engine_api_key: SecretStr | None = Field(
        None, description="With `vllm`, the key that the servers ask for (`vllm serve --api-key`)."
    )
    engine_stall_s: float = Field(
        120.0,
        gt=0,
        description="With `vllm`, how long a server may be silent during an answer before that fails, in seconds.",
    )
    adapter_dir: Path = Field(
        Path(".loopwright/adapters"),
        description="With `vllm`, the folder through which the servers get versions. It has the same path for this "
        "service and for all servers.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device of the model. `auto` uses the GPU if there is one."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="Type of the weights in memory. `auto` is the faster of bfloat16 and float32 on a processor; on a "
        "GPU, it is bfloat16, or float16 if the GPU has no units for bfloat16.",
    )
    threads: int = Field(1, ge=1, le=256, description="CPU threads that torch uses.")

    max_batch: int = Field(
        32, ge=8, le=1024, description="Limit of the answers that one version generates at the same time."
    )
    max_batch_tokens: int = Field(
        512,
        ge=64,
        description="Limit of tokens computed in one step. A longer prompt takes several steps, between which running "
        "answers go on.",
    )
    kv_cache_mb: int | None = Field(
        None,
        ge=1,
        description="Memory for the keys and values of running requests, in MiB. By default a quarter of what is free "
        "after the base was loaded, and never more than `max_batch` requests of `max_context` tokens need.",
    )
    max_waiting: int = Field(
        256, ge=1, description="Limit of waiting requests. Further ones are refused with status 429."
    )
    max_context: int = Field(
        4096,
        ge=64,
        description="Limit of prompt and answer together, in tokens. A smaller limit of the model takes precedence.",
    )
    max_tokens: int = Field(
        1024, ge=1, le=8192, description="Limit of answer tokens. A request may only ask for fewer."
    )
    default_tokens: int = Field(
        256, ge=1, le=8192, description="Limit of answer tokens for requests that set none."
    )

    delivery: Literal["spool", "strict"] = Field(
        "spool",
        description="When an answer may end: `spool`, as soon as its record is on disk; `strict`, only after Kafka "
        "has acknowledged its record.",
    )
    spool_mb: int = Field(256, ge=1, description="Limit of the spool on disk, in MiB.")
    strict_timeout_s: float = Field(
        5.0,
        gt=0,
        description="With strict delivery, how long to wait for Kafka before the request fails with status 503.",
    )
    replica: str = Field(
        "",
        max_length=128,
        pattern=r"^[!-~]*$",
        description="Name of this replica in its reports of what it serves, different for each. The default is the "
        "host's name and the port.",
    )
    drain_s: int = Field(
        20, ge=1, le=600, description="At shutdown, how long running requests may take to finish, in seconds."
    )
    flush_s: float = Field(
        5.0,
        ge=0,
        description="At shutdown, how long to send spooled records, in seconds. The rest stays on disk.",
    )
