"""Files and folders: written whole, renamed instead of replaced, locked, told apart by content, and on the hub."""
