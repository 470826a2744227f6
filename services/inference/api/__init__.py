"""HTTP API of inference, compatible with OpenAI's."""
