"""FSDP2 for a model that knows nothing of it: ``configs/strategy/fsdp2.yaml`` names this strategy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from firstlight.initializers import initialize_
from lightning import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed import broadcast
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy, which leaves the sharding to ``configure_model``, with the sharding.

    Each child of the module that has trainable parameters is initialized, while its layers are still whole,
    and then split over the data-parallel processes. In a large model also shard the repeated blocks inside
    it, in the ``configure_model`` of the module: then only one block at a time is gathered.
    """

    def setup_environment(self) -> None:
        """Put all processes on data; left to itself, Lightning puts those of a node on tensor parallelism."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

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

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate what the checkpoint will hold, BatchNorm's statistics included."""
        self.share_buffers()
        return super().validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """As in validation."""
        self.share_buffers()
        return super().test_step(*args, **kwargs)

    def share_buffers(self) -> None:
        """Give every process the buffers of the first, as DDP does; FSDP2 leaves each its own."""
        if self.lightning_module is not None:
            for buffer in self.lightning_module.buffers():
                broadcast(buffer, src=0)
