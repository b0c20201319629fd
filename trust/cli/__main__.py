"""`python -m trust.cli` is `a2a-trust`."""

import sys

from trust.cli import main

sys.exit(main())
