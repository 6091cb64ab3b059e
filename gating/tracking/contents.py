"""Files and folders that the loggers write in the folder of a run."""

__all__ = ["CSV", "CSV_FILES", "WANDB"]

# Folder of the CSV log, and its files as Lightning's logger names them.
CSV = "csv"
CSV_FILES = (f"{CSV}/metrics.csv", f"{CSV}/hparams.yaml")
# Folder of the W&B runs, as wandb names it.
WANDB = "wandb"
