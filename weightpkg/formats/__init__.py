"""Model file formats: bytes to types, strictly."""
