"""The processes of torch.distributed where all workers are on one machine: nothing of it listens beyond the loopback.

Ray Train has workers meet at a port of torch's TCPStore, which listens on all interfaces and asks nobody who he is.
Workers of one machine can meet in a file.
"""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"


def loopback_variables() -> dict[str, str]:
    """Return what gloo and NCCL read of a worker's environment: the interface to listen on, unless one is set."""
    return {name: os.environ.get(name, _INTERFACE) for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}


def loopback_config() -> Any:
    """Return Ray Train's config of torch.distributed for workers of one machine."""
    import ray
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend

    class Backend(_TorchBackend):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) > 0 else "gloo"
            worker_group.execute(_set_torch_distributed_env_vars)
            # A new file at each start: one that a killed worker has left would name those that are gone.
            self.meeting = Path(tempfile.gettempdir()) / f"seqloom-{uuid.uuid4().hex}"
            joined = [
                worker_group.execute_single_async(
                    rank,
                    _setup_torch_process_group,
                    backend=backend,
                    world_rank=rank,
                    world_size=len(worker_group),
                    init_method=self.meeting.as_uri(),
                    timeout_s=backend_config.timeout_s,
                )
                for rank in range(len(worker_group))
            ]
            ray.get(joined)

        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            super().on_shutdown(worker_group, backend_config)
            self.meeting.unlink(missing_ok=True)

    class Config(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type[Backend]:
            return Backend

    return Config()
