"""What servers of weightpkg have in common: who may ask, limits of connections, and how they end."""
