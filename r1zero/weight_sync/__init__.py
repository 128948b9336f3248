"""Transfer of the trained weights to the engines: who sends what (routes), when (rounds), and the transfer itself."""
