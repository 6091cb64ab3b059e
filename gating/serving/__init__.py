"""How a compact model runs elsewhere: files and folders for serving runtimes, checked there."""
