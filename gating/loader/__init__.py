"""The code that travels with a compact model: its classes, the record, and the removal that it describes."""
