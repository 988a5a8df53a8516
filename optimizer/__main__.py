"""What does `python -m optimizer` do? The same as the command `mergeopt`."""

from optimizer.commands.cli import main

main()
