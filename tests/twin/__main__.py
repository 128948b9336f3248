"""python -m tests.twin DESCRIPTOR: see server.py. Apart from it, so that what it sends is of a module that has a
name."""

from tests.twin.server import main

main()
