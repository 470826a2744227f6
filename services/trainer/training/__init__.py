"""From a snapshot to an adapter: order of rows, losses, checkpoints. Imports torch, so only runs' processes use it."""
