"""`python -m pki.cli` is `a2a-pki`."""

import sys

from pki.cli import main

sys.exit(main())
