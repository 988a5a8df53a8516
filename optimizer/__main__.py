"""What does `python -m optimizer` do? The same as the command `mergeopt`."""

from optimizer.cli import main

main()
