"""``python -m edgeft``: the same as the `edgeft` command."""

import sys

from edgeft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
