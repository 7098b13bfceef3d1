"""Models by torch.compile: which can be, and what is there to do it with."""

from __future__ import annotations

import os
import shutil
import sys

from nmt.config import ModelTable, TrainConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.precision import check_precision
from pipelines.errors import InputError

# Forms of one piece of code: with and without gradients and noise, and with rows or pieces of the number 1, which
# torch treats apart from all others. Beyond its limit torch would go on without compiling, and warn.
_FORMS = 64


def check_compile(model: ModelTable, *, use_gpu: bool) -> None:
    """Raise InputError where `train.compile` cannot be done: by the architecture, or for want of a C++ compiler.

    On a GPU kernels are Triton's, which comes with torch, and are started by code that a C compiler makes.
    """
    if not model.compiles:
        raise InputError(
            f"models of the architecture {model.architecture} are not compiled: torch.compile would lose the gradients "
            "of their loops over time",
            where="train.compile",
            remedy="Set train.compile: false",
        )
    compiler = _compiler(use_gpu=use_gpu)
    if shutil.which(compiler) is None:
        raise InputError(
            f"torch.compile needs the compiler {compiler}, which is not installed",
            where="train.compile",
            remedy="Install it (Debian and Ubuntu: apt install g++), name another by the variable CXX (on a GPU CC), "
            "or set train.compile: false",
        )


def check_arithmetic(model: ModelTable, train: TrainConfig, *, use_gpu: bool) -> None:
    """Raise InputError where training would compute in a way that this machine, or the model, is not made for."""
    check_precision(train.precision, use_gpu=use_gpu)
    if train.compile:
        check_compile(model, use_gpu=use_gpu)


def _compiler(*, use_gpu: bool) -> str:
    """Return the compiler that torch would call."""
    if use_gpu:
        return os.environ.get("CC", "gcc")
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def compile_model(model: Seq2Seq) -> None:
    """Have the forward pass of a model, and with it the backward pass, compiled at its first calls, for all shapes.

    Names of parameters stay as they are. Noise is drawn outside of what is compiled, so that it is the same.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _FORMS)
    model.compile(dynamic=True)
