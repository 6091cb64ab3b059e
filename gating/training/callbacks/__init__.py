"""What happens during a phase besides training steps: records, progress, reasons to stop."""
