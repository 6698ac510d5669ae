"""The maintainer's side of a signed index: keys, plan, metadata, and what is published."""
