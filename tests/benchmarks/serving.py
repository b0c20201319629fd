"""`a2a-pki serve` without the limits on how often one agent renews: a benchmark's agent renews all the time.

A module of its own, because worker processes import it again.
"""

from pki.cli import main
from pki.service import attempts

attempts.RENEWALS_BURST = attempts.AGENT_RENEWALS_BURST = 1_000_000_000

if __name__ == "__main__":
    main()
