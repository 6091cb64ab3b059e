"""How the processes of a run start, exchange values and end: one process for each device."""
