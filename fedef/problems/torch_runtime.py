"""Where and how torch computes: the device, and one thread."""

from __future__ import annotations

import torch

from fedef.errors import ConfigError


def usable_device(name: str) -> torch.device:
    """The device called `name`: cpu, or cuda where there is one.

    Raises
    ------
    ConfigError
        If torch sees no such device.
    """
    if name != "cpu" and not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
        raise ConfigError(
            f"device: got {name!r}, but torch {torch.__version__}, built for {build}, sees none; "
            "set device=cpu, or install a build of torch and a driver for your card"
        )
    return torch.device(name)


def hold_cudnn_to_its_bits() -> None:
    """Have cuDNN use deterministic algorithms without TF32, in the whole process."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False


class OneThread:
    """Torch on one thread inside the block; a class, since a generator costs more per step."""

    def __enter__(self) -> None:
        # Set even where it reads 1: that is OpenMP's number, MKL keeps its own until it is told.
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *exception: object) -> None:
        torch.set_num_threads(self._threads)
