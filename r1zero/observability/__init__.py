"""What a run records and shows: metrics, plots, console output, logs and alarms."""
