"""Between a snapshot and an adapter: losses, order, checkpoints, memory. In a run's process alone, where torch is."""
