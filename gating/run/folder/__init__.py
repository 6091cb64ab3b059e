"""What a run's folder holds, and how a run goes on from it."""
