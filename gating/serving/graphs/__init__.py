"""Graphs for ONNX Runtime and OpenVINO: of a forward pass, and of decoders with their cache."""
