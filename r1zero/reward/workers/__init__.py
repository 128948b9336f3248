"""Grading in processes that can be killed: a supervisor and its workers."""
