"""The live tallies view: a Faust table that only reads, next to the engine."""
