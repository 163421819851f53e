"""Triton kernels without a GPU: under the interpreter, and compiled for one that is not there.

The interpreter must be asked for before triton is imported, and stays on for the process. So
without a GPU a file of tests is run again in a process of its own.
"""

import os
import subprocess
import sys

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = (
    ["cpu"]
    if INTERPRETED
    else [
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
            ],
        )
    ]
)


def passes_interpreted(path):
    """Every test of a file passes under the interpreter, and none is skipped."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", path, "-q", "-p", "no:cacheprovider"],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def compiled(kernel, args, constants):
    """A kernel as the driver would be given it for this launch on an H100."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import mangle_type

    given = dict(zip(kernel.arg_names, args, strict=False)) | constants
    signature, fixed = {}, {}
    for parameter in kernel.params:
        value = given.pop(parameter.name)
        if parameter.is_constexpr or (type(value) is int and value == 1):
            signature[parameter.name], fixed[parameter.name] = "constexpr", value
        else:
            signature[parameter.name] = parameter.annotation_type or mangle_type(value)
    source = triton.compiler.ASTSource(kernel, signature, fixed)
    options = given | {"enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
