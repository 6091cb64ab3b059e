"""Decoders with a key-value cache for ONNX Runtime GenAI."""
