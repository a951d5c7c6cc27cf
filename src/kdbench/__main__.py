"""`python -m kdbench` runs the command `kdbench`."""

from kdbench.cli import main

main()
