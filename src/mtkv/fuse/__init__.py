"""Fuse several teachers' KV with weights from a router."""
