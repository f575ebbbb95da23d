"""The server under load and under faults; see docs/performance/serving.md."""
