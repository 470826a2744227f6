"""The model server: OpenAI-compatible chat over one base model, whose versions are LoRA adapters.

The way of a chat: `app` (door) -> `serving` (pinned to one version) -> `engine` (one thread, micro-batches)
-> `recorder` (the response record) -> the client. The way of a new version: `rollout_reader` -> `takeover`
-> `engine` -> `serving`.
"""
