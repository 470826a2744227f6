"""Two apps that write to Kafka directly: one with the SDK's publisher, one with nothing but kcat."""
