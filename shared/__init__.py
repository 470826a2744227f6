"""What the services share: records, topics, errors, settings, ports and their adapters. Never imports torch."""
