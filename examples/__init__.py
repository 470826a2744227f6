"""Examples that run against a real stack: the demo, its invented company and simulated users, and the chapter."""
