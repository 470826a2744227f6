"""Callbacks for frameworks: they record the answers of an app's models, so that feedback on them can be learned from.

Each module needs its framework, which an extra installs: `loopwright[langchain]`, `loopwright[litellm]`.
"""
