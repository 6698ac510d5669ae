"""Mirrors and bundles: all that lockfiles need, as static files or in one file."""
