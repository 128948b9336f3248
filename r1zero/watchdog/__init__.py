"""Ends the job if a rank fails, becomes silent or exceeds its deadline, and names that rank."""
