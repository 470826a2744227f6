"""HTTP routes of inference, compatible with OpenAI clients."""
