"""The worlds: whether one recipe learns from feedback in three domains that are unlike the demo's."""
