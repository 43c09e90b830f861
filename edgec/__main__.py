"""`python -m edgec` is the `edgec` command."""

from __future__ import annotations

import sys

from edgec.cli import main

if __name__ == "__main__":
    sys.exit(main())
