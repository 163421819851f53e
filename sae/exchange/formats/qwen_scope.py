"""Qwen Scope: one file `layer{n}.sae.pt` for each layer, side by side in a repository.

The name of the repository, `Qwen/SAE-Res-{model}-W{width}K-L0_{k}`, says what no file in it
does: the model, the width in units of 1,024 latents, and k. By the card of each repository the
latents are the k largest of `W_enc x + b_enc`, where x is the residual stream behind layer n;
nothing is subtracted. Of these k the ones below zero are left out here, as by SAELens: the code
in the card keeps them, which differs where a row has fewer than k of its 32,768 or more above
zero. It is only read, as what is written has no place for k.
"""

import os
import re
from pathlib import Path

from sae.base import UserError
from sae.dictionary import Dictionary, TopK, dictionary_of
from sae.dictionary.tensors import load_pickle, tensors_of
from sae.exchange.formats.parts import Format, read_weights

SUFFIX = ".sae.pt"
_NAMES = {"W_enc": "W_enc.T", "W_dec": "W_dec.T", "b_enc": "b_enc", "b_dec": "b_dec"}
_LAYER = re.compile(r"layer(\d+)\.sae\.pt")
_REPOSITORY = re.compile(r"(?:SAE-Res-(?P<model>.+)-W(?P<width>\d+)K-)?L0_(?P<k>\d+)$")


class QwenScope(Format):
    """A file, or the folder with this one file."""

    name = "qwen_scope"
    files = (f"layer*{SUFFIX}",)

    def recognises(self, path: Path) -> bool:
        return (path.is_file() and path.name.endswith(SUFFIX)) or bool(self._there(path))

    def _there(self, folder: Path) -> list[Path]:
        found = sorted(folder.glob(self.files[0]))
        return [path for path in found if _LAYER.fullmatch(path.name)]

    def read(self, path: Path) -> Dictionary:
        found = [path] if path.is_file() else self._there(path)
        if len(found) != 1:
            some = f", such as {found[0]}" if found else f", layer0{SUFFIX} say"
            raise UserError(
                f"{path} holds {len(found)} layers as {self.files[0]}; give one{some}"
            )
        (file,) = found
        name = _repository(file)
        said = _REPOSITORY.search(name)
        if said is None:
            raise UserError(
                f"{file} does not say k, and neither does the name of its folder, {name}; "
                "put it into a folder whose name ends in L0_50 if k is 50, or make a link "
                "with such a name"
            )
        weights = read_weights(tensors_of(file, load_pickle(file)), _NAMES)
        d_sae, asked = len(weights["b_enc"]), said["width"]
        if asked is not None and int(asked) * 1024 != d_sae:
            raise UserError(
                f"{file}: {name} says W{asked}K, {int(asked) * 1024} latents, but the file "
                f"has {d_sae}; put it into a folder with the name of its repository"
            )
        layer, known = _LAYER.fullmatch(file.name), {}
        if said["model"]:
            known["model_name"] = f"Qwen/{said['model']}"
        if layer:
            known["hook_name"] = f"blocks.{layer[1]}.hook_resid_post"
        return dictionary_of(weights, TopK(int(said["k"])), file, known)


def _repository(file: Path) -> str:
    """Return the name of its folder; in the Hub's cache, that of the repository."""
    # What the path says, not where a link in it leads: in that cache, to a blob.
    folder = Path(os.path.abspath(file)).parent
    return folder.parents[1].name if folder.parent.name == "snapshots" else folder.name
