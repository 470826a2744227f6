"""Pure parts of inference: requests, canary routing, incremental detokenization."""
