"""`python -m DiffDRRCore`."""

import sys

from DiffDRRCore.cli import main

if __name__ == "__main__":
    sys.exit(main())
