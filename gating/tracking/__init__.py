"""Records of a run in Weights & Biases, TensorBoard and CSV files, and its progress, with secrets redacted."""
