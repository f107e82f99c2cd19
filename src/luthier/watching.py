"""Following a training from outside: its validation losses, and the wish that it ends early."""

from luthier.errors import PrunedRunError


class Watch:
    """Who follows the validation loss of a training, and may end it. This one never does."""

    def validated(self, progress: float, loss: float) -> None:
        """A validation loss, nats a supervised token, was measured after the share `progress` of
        the optimizer steps, which is above 0 and at most 1."""

    @property
    def wants_end(self) -> bool:
        """Whether the training is to end; once it is, it stays so."""
        return False

    def raise_if_ended(self) -> None:
        """Raises PrunedRunError where the training was to end."""
        if self.wants_end:
            raise PrunedRunError(
                "Ended by who watched it: its validation losses were not worth going on. The same "
                "run without a watch goes on from its checkpoint."
            )


UNWATCHED = Watch()
