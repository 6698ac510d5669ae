"""Signed indexes: verified pages, what is remembered of them, and who may sign what."""
