"""`python -m ninefold` is the command `ninefold`."""

from flows.cli.main import main

main()
