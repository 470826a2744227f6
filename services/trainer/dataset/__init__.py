"""What users said, as a dataset: collected, verified, grouped, with its objectives, frozen for a run or exported."""
