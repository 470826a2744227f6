"""`make bench-processor`: compares the stream engine and the processor with their peers, on one Kafka in one run."""
