"""Overrides of TRL, PEFT and transformers that exist only because CPUs are slow. Numbers: benchmarks/trainer.json."""
