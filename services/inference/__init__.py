"""OpenAI-compatible chat over one base model, whose versions are LoRA adapters.

A chat passes through `api/routes.py`, `api/chat_handler.py` (which pins it to one version with `version_registry.py`),
the engine (`engine/port.py`), `response_stream.py` and `response_publisher.py`, which publishes its record. A new
version passes through `rollout_reader.py`, `version_swap.py`, the engine and `version_registry.py`.
"""
