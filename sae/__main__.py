"""`python -m sae` is the command `sae`."""

import sys

from sae.cli import main

if __name__ == "__main__":
    sys.exit(main())
