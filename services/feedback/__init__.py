"""The service that takes feedback, responses and erasure requests over HTTP, and returns receipts."""
