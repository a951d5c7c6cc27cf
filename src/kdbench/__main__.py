"""`python -m kdbench` is the command."""

from kdbench.cli import main

main()
