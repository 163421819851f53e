"""Control vectors: one file of a direction a layer, for llama.cpp, repeng and EasySteer.

`direction.k` is added behind block k, counted from 0, which is `blocks.k.hook_resid_post`;
llama.cpp reads k from 1 on (`llama_adapter_cvec`, src/llama-adapter.cpp), so block 0 cannot be
steered by one.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sae.base import UserError, atomic_path, require
from sae.edits.constants import Constant
from sae.models import Site

_SITE = re.compile(r"blocks\.(\d+)\.hook_resid_post")


def write_control_vector(
    path: Path, constants: Sequence[Constant], model_type: str, n_layers: int
) -> None:
    """Write a GGUF file.

    Args:
        model_type: the architecture's name in llama.cpp, as a hint for people.
        n_layers: blocks of the model.

    Raises:
        UserError: for an edit at another hook than behind a block, or behind block 0.
    """
    from gguf import GGUFWriter

    layers = {block_before(one.site): one.vector for one in constants}
    require(
        0 not in layers, "a control vector cannot be added after block 0; edit a later block"
    )
    with atomic_path(path) as temporary:
        writer = GGUFWriter(temporary, "controlvector")
        writer.add_string("controlvector.model_hint", model_type)
        writer.add_uint32("controlvector.layer_count", n_layers)
        for layer, vector in sorted(layers.items()):
            writer.add_tensor(f"direction.{layer}", vector.numpy().astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def block_before(site: Site) -> int:
    """Return the number of the block behind which a site stands.

    Raises:
        UserError: for a site that stands elsewhere.
    """
    found = _SITE.fullmatch(site.hook_name)
    if found is None:
        raise UserError(
            f"it can only be made after a block, but this edit is at {site.hook_name}; edit "
            "a hook blocks.N.hook_resid_post"
        )
    return int(found[1])
