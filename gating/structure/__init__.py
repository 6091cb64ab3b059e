"""Where attention heads are in a model and how they are removed; copied into compact folders, so no other imports."""
