"""`python -m saev_core.cli`: the same as the command `saev`."""

import sys

from saev_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
