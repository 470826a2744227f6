"""Overrides of TRL and PEFT that exist only because CPUs are slow."""
