"""`python -m tubelet` is the `tubelet` command."""

import sys

from tubelet.cli import main

sys.exit(main())
