"""`make bench-feedback`: durable feedback per second of the feedback API, next to plain handlers."""
