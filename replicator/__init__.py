"""Carries Kafka logs between clusters: batches are moved, not re-made. README.md tells how."""

__version__ = "0.1.0"
