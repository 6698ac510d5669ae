"""Bills of materials in the standard forms."""
