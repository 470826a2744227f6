"""Pure rules of the feedback service: schemas, receipts, dead-letter replay."""
