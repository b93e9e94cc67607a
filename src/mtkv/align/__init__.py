"""Bring a teacher's KV to the student's tokens, layers, heads and width."""
