"""Decoders as GGUF files for llama.cpp."""
