"""Records of a run in Weights & Biases, TensorBoard and CSV files, with secrets redacted."""
