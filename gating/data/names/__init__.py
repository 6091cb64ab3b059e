"""Names of classes and columns that look the same and are not."""
