"""`python -m certood`: the same as the command `certood`."""

from certood.cli import main

main()
