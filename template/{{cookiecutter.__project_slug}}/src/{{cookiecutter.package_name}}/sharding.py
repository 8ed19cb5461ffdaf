"""FSDP2 for a model that knows nothing of it: ``configs/strategy/fsdp2.yaml`` names this strategy."""

from collections.abc import Iterator
from contextlib import contextmanager

from firstlight.initializers import initialize_
from lightning import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy, which leaves the sharding to ``configure_model``, with the sharding.

    Each child of the module that has trainable parameters is initialized, while its layers are still whole,
    and then split over the data-parallel processes. In a large model also shard the repeated blocks inside
    it, in the ``configure_model`` of the module: then only one block at a time is gathered.
    """

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Shard when ``configure_model`` has run: Lightning calls it inside this context."""
        with super().model_sharded_context():
            yield
        if self.lightning_module is not None:
            self.shard(self.lightning_module)

    def shard(self, module: LightningModule) -> None:
        """Initialize and split what is not split already."""
        for child in module.children():
            parameters = list(child.parameters())
            if parameters and not any(isinstance(parameter, DTensor) for parameter in parameters):
                initialize_(child)
                fully_shard(child, mesh=self.device_mesh["data_parallel"])
