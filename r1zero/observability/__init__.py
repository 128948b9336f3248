"""What a run records and shows: metrics, plots, console lines, logs, alarms."""
