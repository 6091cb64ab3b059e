"""A real decoder made smaller and healed, beside rivals that are healed the same way, in PyTorch and in llama.cpp."""
