"""`python -m wdecomp` is `wdecomp`."""

from wdecomp.cli import main

main()
