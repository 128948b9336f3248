"""Makes miniature base models: small enough for two cores, but large enough to show the learning curves of R1-Zero.

The task is to compute the value of a short chain of digits, `Question: 7+8-3=?`. A seed determines everything: a
byte-level tokenizer, a corpus in which the R1-Zero format occurs only occasionally, and a base model of about 0.7 M
parameters. The base almost never solves a problem in the format, but it has seen all that reinforcement needs.
"""
