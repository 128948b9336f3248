"""The maker of miniature base models: small enough for two cores, real enough that R1-Zero's curves show.

The task is the value of a short chain of digits, `Question: 7+8-3=?`. A byte-level tokenizer, a corpus in which the
R1-Zero format turns up only now and then, and a base model of some 0.7 M parameters are made from nothing but a seed.
The base almost never solves a problem in the format; it has seen all that reinforcement needs to get there.
"""
