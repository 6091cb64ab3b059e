"""Where a run is recorded: Weights & Biases, TensorBoard and CSV files, with secrets redacted."""
