"""`make bench-processor`: the stream engine and the processor beside their peers, on one Kafka, in one run."""
