"""Engines that generate answers.

`port.py` is the contract, `transformers_engine.py` the engine that runs in this process, `vllm/` the one in front of
vLLM servers, `in_memory.py` the engine without a model for tests. To add an engine, implement the contract in one
class, build it in `build_engine` of `service.py`, and add it to `tests/contract/test_inference_engine_contract.py`.
"""
