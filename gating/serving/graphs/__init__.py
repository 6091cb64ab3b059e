"""Graphs of a forward pass: ONNX and torch.export, with their weights as floats or 8-bit integers."""
