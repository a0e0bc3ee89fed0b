"""`python -m ycore_adapters.cli`."""

from . import main

main()
