"""The live view: what users think of each version, for `/tallies`."""
