"""The types that a dictionary's weights can have in its file.

- `bfloat16`, `float16`: every tensor rounded to the nearest number of that type. SAELens loads
  these, and computes in them.
- `int8`: a column of `W_enc`, a row of `W_dec` or of `W_skip` is `scale * integers`, where the
  scale is its largest entry over 127; the scales lie beside, in float32, as `W_enc_scale`
  (d_sae,), `W_dec_scale` (d_sae,), `W_skip_scale` (d_out,). Biases, thresholds and all other
  vectors stay float32: they cost nothing. No other tool knows this.

Whatever the type, `sae.load` makes float32 of it again and computes in that.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from sae.base import nearest, require
from sae.dictionary.dictionary import Dictionary
from sae.dictionary.tensors import Header, TensorFile

FULL = "float32"
_FLOATS = {FULL: torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INT8 = "int8"
DTYPES = (*_FLOATS, INT8)
_SHORT = {"fp32": FULL, "bf16": "bfloat16", "fp16": "float16"}
# The dimension that shares a scale, of the tensors that int8 is for.
_SCALED_OVER = {"W_enc": 0, "W_dec": 1, "W_skip": 1}


def named_dtype(word: str) -> str:
    """Return the type that `word` names; `bf16` and its like are short for the long names.

    Raises:
        UserError: if it names none.
    """
    name = _SHORT.get(word, word)
    known = ", ".join(DTYPES)
    require(
        name in DTYPES,
        f"dtype={word} is unknown; choose one of {known}{nearest(word, [*DTYPES, *_SHORT])}",
    )
    return name


def packed(
    tensors: Mapping[str, Tensor], dtype: str, never: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return tensors as a file has them, contiguous and on the CPU; with int8 also the scales.

    Args:
        never: names of tensors whose largest entries stand for "never": these are cut to the
            largest number of the type.

    Raises:
        UserError: if an entry is beyond what the type can say.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().float().cpu().contiguous()
        if dtype == INT8 and name in _SCALED_OVER:
            dim = _SCALED_OVER[name]
            scale = plain.abs().amax(dim, keepdim=True) / 127
            found[name] = (plain / scale.where(scale > 0, 1)).round().to(torch.int8)
            found[f"{name}_scale"] = scale.squeeze(dim)
        elif dtype in (FULL, INT8):
            found[name] = plain
        else:
            most = torch.finfo(_FLOATS[dtype]).max
            cut = plain.clamp(max=most) if name in never else plain
            found[name] = cut.to(_FLOATS[dtype])
            require(
                bool(found[name].isfinite().all()),
                f"{name} has entries beyond {most:g}, the largest number of dtype={dtype}; "
                "choose dtype=bfloat16 or float32",
            )
    return found


def as_loaded(dictionary: Dictionary, dtype: str) -> Dictionary:
    """Return what `sae.load` makes of the dictionary once it was stored in `dtype`.

    Raises:
        UserError: as `packed`.
    """
    stored = packed(dictionary.tensors, dtype, dictionary.activation.never)
    weights = {
        name: _unpacked(name, stored[name], stored.get(f"{name}_scale"))
        for name in dictionary.tensors
    }
    return dictionary.with_weights(weights)


def _unpacked(name: str, tensor: Tensor, scale: Tensor | None) -> Tensor:
    whole = tensor.float()
    return whole if scale is None else whole.mul_(scale.unsqueeze(_SCALED_OVER[name]))


def dequantized(file: TensorFile) -> TensorFile:
    """Return a file of int8 tensors with their scales as one of float32 tensors.

    Raises:
        UserError: if a scale is missing or misshapen. An integer tensor of another type is
            refused when it is read.
    """
    headers = dict(file.headers)
    scales = {name: f"{name}_scale" for name in _SCALED_OVER if name in headers}
    for name, scale in scales.items():
        shape = headers[name].shape
        expected = tuple(n for i, n in enumerate(shape) if i != _SCALED_OVER[name])
        require(
            headers.pop(scale, None) == Header(expected, floating=True),
            f"{file.path}: {name} is int8 and needs {scale} of shape {expected}; give the file "
            "as it was saved",
        )
        headers[name] = Header(shape, floating=True)

    def get(name: str) -> Tensor:
        integers = file.get(name)
        if name not in scales:
            return integers
        if integers.dtype != torch.int8:
            raise TypeError(f"{name} holds {integers.dtype}, where int8 is right")
        return _unpacked(name, integers, file.get(scales[name]).float())

    return TensorFile(file.path, headers, get)
