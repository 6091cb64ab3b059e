"""Writing of files and folders: whole or not at all, replacing only results of this package."""
