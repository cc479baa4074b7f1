"""Measurements, each with its rival in the same run; see README.md."""
