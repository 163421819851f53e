"""EleutherAI's sparsify, and its layout on the Hub: a folder for each hookpoint.

`{run}/{hookpoint}/cfg.json` beside `sae.safetensors`, with several seeds
`{hookpoint}/seed{n}/`; `{run}/config.json` names the model. `SparseCoder.encode` of
eai-sparsify 1.3.3: the k largest of `relu(W (x - b_dec) + b)`, where a transcoder (`transcode`)
does not subtract b_dec. A hookpoint is a module's path below the base model, its output the
activation; a transcoder reads the module's input.
"""

import re
from pathlib import Path

from safetensors.torch import save

from sae.base import UserError, require
from sae.dictionary import Dictionary, TopK, dictionary_of
from sae.dictionary.folding import with_b_dec, without_b_dec
from sae.dictionary.tensors import check_sizes, flag, open_safetensors
from sae.exchange.formats import parts

_CONFIG, _WEIGHTS = "cfg.json", "sae.safetensors"
_NAMES = {
    "encoder.weight": "W_enc.T",
    "encoder.bias": "b_enc",
    "W_dec": "W_dec",
    "b_dec": "b_dec",
}
_WITH_SKIP = _NAMES | {"W_skip": "W_skip"}


class Sparsify(parts.Written):
    """The folder of a hookpoint."""

    name = "sparsify"
    files = (_CONFIG, "../config.json", _WEIGHTS)
    title = "sparsify"
    load = """\
from sparsify import Sae
dictionary = Sae.load_from_disk("{folder}")"""
    lost = "metadata, but for the hookpoint in the folder's name"
    activations = (TopK,)
    limits = (
        ("activation", "its latents are chosen by top-k alone"),
        ("width", "it reads and writes activations of one width"),
    )

    def read(self, path: Path) -> Dictionary:
        config_path = path / _CONFIG
        config = parts.read_config(config_path)
        activation = config.get("activation", "topk")
        require(
            activation == "topk",
            f"{config_path}: activation={activation}; only topk can be read, where the k "
            "largest of all latents are active",
        )
        require(
            not flag(config_path, config, "signed"),
            f"{config_path}: signed=true, but activations below zero cannot be read",
        )
        k, skip = config.get("k"), flag(config_path, config, "skip_connection")
        if type(k) is not int:
            raise UserError(f"{config_path}: k={k}; give a whole number")
        file = open_safetensors(path / _WEIGHTS)
        weights = parts.read_weights(file, _WITH_SKIP if skip else _NAMES)
        d_in, d_sae = weights["W_enc"].shape
        # Zero latents mean: as the factor says.
        factor = config.get("expansion_factor", 32)
        require(type(factor) is int, f"{config_path}: expansion_factor={factor}; give a number")
        said = {**config, "num_latents": config.get("num_latents") or d_in * factor}
        check_sizes(config_path, said, {"d_in": d_in, "num_latents": d_sae})
        transcodes = flag(config_path, config, "transcode")
        metadata = parts.read_metadata(path, _native(path, transcodes))
        found = dictionary_of(weights, TopK(k), path, metadata, transcoder=transcodes)
        return found if transcodes else without_b_dec(found)

    def write(self, dictionary: Dictionary, folder: Path) -> None:
        transcodes, skip = dictionary.is_transcoder, dictionary.W_skip is not None
        folded = dictionary if transcodes else with_b_dec(dictionary)
        config = {
            "activation": "topk",
            "expansion_factor": 32,
            "normalize_decoder": True,
            "num_latents": dictionary.d_sae,
            **dictionary.activation.numbers,
            "multi_topk": False,
            "skip_connection": skip,
            "transcode": transcodes,
            "d_in": dictionary.d_in,
        }
        weights = save(parts.named_tensors(folded, _WITH_SKIP if skip else _NAMES))
        parts.write_folder(
            folder, dictionary, {_CONFIG: parts.as_json(config), _WEIGHTS: weights}
        )


def _native(path: Path, transcodes: bool) -> dict[str, object]:
    place = path.resolve()
    if re.fullmatch(r"seed\d+", place.name):
        place = place.parent
    run, name = place.parent / "config.json", place.name
    model = {"model_name": parts.read_config(run).get("model") if run.is_file() else None}
    if not re.search(r"\.\d+(\.|$)", name):
        return model
    output, read_from = parts.hook_of_module(name), parts.hook_of_module(name, "input")
    if not transcodes:
        return model | {"hook_name": output, "hf_hook_name": name}
    known = read_from if read_from != name else None
    return model | {"hook_name": known, "hook_name_out": output, "hf_hook_name_out": name}


def hookpoint(dictionary: Dictionary) -> str:
    """Return the folder's name: a path below the base model if the hook is a module's output.

    Its tools hook outputs alone. What a block reads is what the one before returns, and
    anything else keeps the name of its hook, under which they find no module.
    """
    site = dictionary.writes[0].site
    if site is None:
        return dictionary.hook_name_out
    module, side = site.module, site.side
    block = re.fullmatch(r"(.*\.)(\d+)", module)
    if block and site.hook_name.endswith(".hook_resid_pre") and int(block[2]):
        module, side = f"{block[1]}{int(block[2]) - 1}", "output"
    if side == "input" or site.call is not None:
        return dictionary.hook_name_out
    return re.sub(r"^\w+\.(?=(layers|h|encoder)\.)", "", module)
