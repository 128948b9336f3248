"""The trained weights on their way to the engines: who sends what, when, and the transfer itself."""
