"""weightpkg: the package manager for open model weights."""

__version__ = "0.1.0"
