"""``python -m DCLS`` is the command ``dcls``."""

import sys

from DCLS.cli import main

if __name__ == "__main__":
    sys.exit(main())
