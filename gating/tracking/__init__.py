"""Where a run is recorded: Weights & Biases and CSV files, with secrets redacted."""
