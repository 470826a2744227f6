"""Error rates of the gate: simulations and null adapters."""
