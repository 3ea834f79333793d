"""`python -m mmembed` is the command line."""

from .cli import main

main()
