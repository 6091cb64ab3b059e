"""The proof of a removal: its outputs are those of the masked model, or it is undone; and inputs made for it."""
