"""The trainer of `trainer.py` on weights in shards (FSDP2)."""

from functools import cache, partial
from pathlib import Path
from typing import Any

from luthier.training.sharding import (
    gather_in_place,
    gathered,
    save_optimizer,
    shard,
    split_state,
)


@cache
def sharded_trainer_class() -> Any:  # noqa: C901, methods of a class count as branches
    """The trainer class. What it replaces: transformers 5.23 `trainer.py`."""
    from luthier.training.trainer import supervised_trainer_class

    class ShardedTrainer(supervised_trainer_class()):  # type: ignore[misc]
        """Loads a checkpoint into the whole model, then shards; gathers when training is over.

        So weights are read, compared and written as those of one process.
        """

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            # Sharding takes the place of DistributedDataParallel, which is left out so.
            self.accelerator.prepare_model = partial(
                self.accelerator.prepare_model, evaluation_mode=True
            )

        def _move_model_to_device(self, model: Any, _device: Any) -> Any:
            """It goes there by shards."""
            return model

        def create_optimizer(self, model: Any = None) -> Any:
            if self.optimizer is None:
                # The optimizer must be made of the shards.
                shard(self.model, self.args.device.type)
            return super().create_optimizer(model)

        def train_from(self, checkpoint: Path | None) -> None:
            super().train_from(checkpoint)
            gather_in_place(self.model)

        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
            whole = gathered(self.model)
            if self.args.should_save:
                self._save(output_dir, state_dict=whole)

        def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
            super()._save_optimizer_and_scheduler(output_dir)
            save_optimizer(self.optimizer, Path(output_dir), writes=self.args.should_save)

        def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
            super()._load_optimizer_and_scheduler(checkpoint)
            split_state(self.optimizer)

    return ShardedTrainer
