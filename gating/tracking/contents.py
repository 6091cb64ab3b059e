"""Files and folders that the loggers write in the folder of a run."""

__all__ = ["CSV", "CSV_FILES", "EVENT_FILES", "TENSORBOARD", "WANDB", "WANDB_ID"]

# Folder of the CSV log, and its files as Lightning's logger names them.
CSV = "csv"
CSV_FILES = (f"{CSV}/metrics.csv", f"{CSV}/hparams.yaml")
# Folder of the W&B runs, as wandb names it.
WANDB = "wandb"
# It holds the id of the W&B run of this run; the folders of earlier runs stay.
WANDB_ID = f"{WANDB}/id-of-run"
# Folder of TensorBoard's event files, and the pattern of their names.
TENSORBOARD = "tensorboard"
EVENT_FILES = "events.out.tfevents.*"
