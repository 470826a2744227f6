"""The running rows of all versions, on transformers' continuous batching. Imports torch."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any, Final

import structlog
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching import PagedAttentionCache, RequestState
from transformers.generation.continuous_batching.cache import (
    find_head_dim,
    find_num_kv_heads,
    group_layers_by_attn_type,
)
from transformers.generation.continuous_batching.continuous_api import (
    BackgroundThreadStatus,
    ContinuousBatchProcessor,
    OutputRouter,
)
from transformers.generation.continuous_batching.distributed import DistributedHelper
from transformers.generation.continuous_batching.requests import GenerationOutput

from services.inference.engine.batch_limits import BLOCK_TOKENS, BatchLimits
from services.inference.engine.generation_rows import ChoiceRow
from services.inference.engine.lane_scheduler import LaneScheduler, lane_of
from services.inference.engine.paged_attention import PAGED_ATTENTION, PLAN, plan_attention
from services.inference.engine.token_sampling import TokenSampler
from shared.errors import Misconfigured

NOT_FINITE: Final = "the model's output has values that are not finite"
MAX_ERROR: Final = 1000
"""Characters of an error that are reported."""
log = structlog.get_logger(__name__)


class ContinuousBatch:
    """Rows of several versions that generate at once. Rows join and leave between steps.

    A row reserves the cache that it may need to its end, so a running row never waits for memory and never loses its
    keys and values. One thread makes all calls.

    Args:
        base: The base model. It says what the cache looks like, which is the same for all versions.
        model_of: Returns the model of a version.
        eos_token_ids: Tokens that end an answer.
        limits: Limits of rows and memory.

    Raises:
        Misconfigured: if transformers cannot batch this model continuously, or memory does not suffice.

    """

    def __init__(
        self,
        base: PreTrainedModel,
        model_of: Callable[[str], PreTrainedModel],
        eos_token_ids: frozenset[int],
        limits: BatchLimits,
    ) -> None:
        self.limits = limits
        self._model_of = model_of
        self._eos_token_ids = eos_token_ids
        self._rows: dict[str, ChoiceRow] = {}
        self._reserved: dict[str, int] = {}
        self._requests: queue.Queue[RequestState] = queue.Queue()
        self._cancelled: queue.Queue[str] = queue.Queue()
        self._sampler = TokenSampler(self._rows)
        config = base.config.get_text_config()
        settings = ContinuousBatchingConfig(
            block_size=BLOCK_TOKENS,
            num_blocks=limits.blocks,
            max_batch_tokens=limits.step_tokens,
            max_requests_per_batch=limits.rows,
            max_blocks_per_request=0,
            max_memory_percent=1.0,
            # Keys and values of one version are not those of another, and a row with a seed must not depend on others.
            allow_block_sharing=False,
            use_async_batching=False,
            use_cuda_graph=False,
        )
        helper = DistributedHelper(None, None)
        try:
            cache = PagedAttentionCache(config, settings, base.device, helper, {}, dtype=base.dtype)
        except MemoryError as error:
            raise Misconfigured(f"LOOPWRIGHT_INFERENCE_KV_CACHE_MB is too high: {error}") from error
        except (ValueError, AttributeError) as error:
            raise _unsupported(base, error) from error
        self._scheduler = LaneScheduler(cache, self._rows, limits.rows)
        self._uses_plan = config._attn_implementation == PAGED_ATTENTION
        self._processor = ContinuousBatchProcessor(
            cache=cache,
            config=config,
            generation_config=GenerationConfig(do_sample=False),  # type: ignore[no-untyped-call]
            continuous_batching_config=settings,
            logit_processor=self._sampler,
            input_queue=self._requests,
            cancel_queue=self._cancelled,
            output_router=_RowRouter(self._receive),
            background_thread_status=BackgroundThreadStatus(),
            model_device=base.device,
            model_dtype=base.dtype,
            scheduler=self._scheduler,
            distributed_helper=helper,
        )

    @property
    def rows(self) -> tuple[ChoiceRow, ...]:
        """The rows that run."""
        return tuple(self._rows.values())

    @property
    def max_length(self) -> int:
        """Limit of prompt and answer of one row, in tokens."""
        return self.limits.max_length

    def has_place(self, version: str) -> bool:
        """Return whether one more row of the version may run."""
        return sum(row.version == version for row in self._rows.values()) < self.limits.rows

    def has_memory(self, length: int) -> bool:
        """Return whether the cache has room for a row of this length."""
        return self.limits.blocks_of(length) <= self.limits.blocks - sum(self._reserved.values())

    def add(self, row: ChoiceRow) -> None:
        """Let the row join the next step of its version. The caller has checked `has_memory`."""
        self._rows[row.id] = row
        self._reserved[row.id] = self.limits.blocks_of(row.max_length)
        self._requests.put(
            RequestState(
                request_id=row.id,
                initial_tokens=list(row.generation.prompt),
                max_new_tokens=row.generation.max_tokens,
                eos_token_id=sorted(self._eos_token_ids),
                streaming=True,
            )
        )

    def remove_ended(self) -> None:
        """End the rows of cancelled requests, and give up the places and the memory of all rows that have ended."""
        for row in self.rows:
            if row.generation.cancelled:
                row.cancel()
                row.generation.end_if_finished()
            if row.finish_reason is not None or row.generation.ended:
                del self._rows[row.id], self._reserved[row.id]
                if row.id in self._scheduler.active_requests or row.id in self._scheduler.waiting_requests:
                    self._cancelled.put(row.id)

    @torch.no_grad()
    def step(self) -> None:
        """Run one forward pass for one lane and push each token to its row. Call `remove_ended` before.

        An error, such as too little memory, ends the requests of the lane.
        """
        processor, scheduler = self._processor, self._scheduler
        scheduler.forget_lane()
        try:
            if not processor.prepare_next_batch() or scheduler.lane is None:
                return
            io = processor.inputs_and_outputs
            arguments: dict[str, Any] = dict(io.get_model_kwargs())
            if self._uses_plan:
                arguments[PLAN] = plan_attention(arguments)
            processor.model_runner.compute_batch(self._model_of(scheduler.lane[0]), arguments)
            io.retrieve_device_outputs()
            for row in self._sampler.unusable:
                row.generation.end("failed", NOT_FINITE)
            processor.update_batch()
        except Exception as error:
            # Another lane need not meet the same error, and its rows are intact.
            log.exception("step_failed", lane=scheduler.lane, rows=len(self._rows))
            for row in self.rows:
                if scheduler.lane in (None, lane_of(row)):
                    row.generation.end("failed", f"{type(error).__name__}: {error}"[:MAX_ERROR])

    def _receive(self, output: GenerationOutput) -> None:
        """Push a new token to its row."""
        row = self._rows[output.request_id]
        if row.generation.ended:
            return
        if output.error is not None:
            row.generation.end("failed", output.error[:MAX_ERROR])
            return
        row.push(output.generated_tokens[-1], self._eos_token_ids)
        row.generation.end_if_finished()


def cache_layout(model: PreTrainedModel) -> tuple[int, int]:
    """Return the number of layer groups of the model's key and value cache, and the bytes of a block.

    Raises:
        Misconfigured: if transformers cannot batch this model continuously.

    """
    config = model.config.get_text_config()
    try:
        layers, _ = group_layers_by_attn_type(config)
        numbers = 2 * len(layers[0]) * find_num_kv_heads(config) * find_head_dim(config)
    except (ValueError, AttributeError) as error:
        raise _unsupported(model, error) from error
    return len(layers), numbers * BLOCK_TOKENS * model.dtype.itemsize


def _unsupported(model: PreTrainedModel, error: Exception) -> Misconfigured:
    return Misconfigured(
        f"transformers cannot serve {type(model).__name__} with continuous batching: {error}. "
        "Choose another base model, or serve this one with vLLM"
    )


class _RowRouter(OutputRouter):
    """Hands each output of transformers to `receive` instead of a queue."""

    def __init__(self, receive: Callable[[GenerationOutput], None]) -> None:
        super().__init__()
        self._receive = receive

    def deliver(self, output: GenerationOutput) -> None:
        """Pass on one output."""
        self._receive(output)

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        """Pass on the outputs of one step."""
        for output in outputs:
            self._receive(output)
