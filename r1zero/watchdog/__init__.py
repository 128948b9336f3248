"""Which rank failed, fell silent or is late: it is named, and the job ends."""
