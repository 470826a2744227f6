"""`make experiment`: does it help? Arms with seeds through the real trainer and gate (docs/decisions/experiment.md)."""
