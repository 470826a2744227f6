"""Examples that run against a real stack: the demo's world, its simulated users, the demo itself."""
