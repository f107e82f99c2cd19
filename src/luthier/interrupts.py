"""Stopping on request: the first SIGINT or SIGTERM asks, a second SIGINT ends the process."""

import os
import signal
import sys
from types import FrameType

from luthier.errors import InterruptedRunError


class StopFlag:
    """Whether somebody asked this process to stop. Long work looks at it between steps."""

    def __init__(self) -> None:
        self.requested = False

    def install(self) -> None:
        """Take SIGINT and SIGTERM. Only the main thread of the program may call this."""
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)

    def raise_if_requested(self) -> None:
        """Raises InterruptedRunError once a stop was requested."""
        if self.requested:
            raise InterruptedRunError(
                "Stopped on request. The same command continues from what is done."
            )

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self.requested and signum == signal.SIGINT:
            os._exit(InterruptedRunError.exit_code)
        self.requested = True
        sys.stderr.write("\nStopping after this step; Ctrl-C again stops at once.\n")
