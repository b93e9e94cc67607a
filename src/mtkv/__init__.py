"""Distil the KV caches of several teachers into one student, and measure whether it helps."""

__version__ = "0.1.0"
