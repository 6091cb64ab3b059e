"""How files and folders are written: whole or not at all, replacing only results of this package."""
