"""Pure parts of inference: request and result types, canary routing, incremental detokenization."""
