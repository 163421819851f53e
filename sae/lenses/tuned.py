"""`TunedLens`: an affine map a layer to the stream after the last block, and its files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float

from sae.base import UserError, check_whole, read_object, require, seal, write_json
from sae.lenses.ridge import Affine
from sae.models import ModelRecord

_MAPS, _ABOUT = "maps.safetensors", "maps.json"
_ANEW = "remove the folder and run sae lens with tuned=true again"


@dataclass(frozen=True, slots=True)
class TunedLens:
    """Affine maps from the stream of some layers to that after the last block."""

    maps: Mapping[int, Affine]
    """By layer, in float32."""
    digest: str
    """Identifies what they were fitted to, and how."""
    model: ModelRecord
    """The model whose streams they map."""
    judged: Mapping[str, Any]
    """What `judge` found on held-out rows, ready for JSON."""

    def __call__(
        self, layer: int, hidden: Float[torch.Tensor, "*row d_model"]
    ) -> Float[torch.Tensor, "*row d_model"]:
        """Return where the stream of a layer would be after the last block."""
        found = self.maps[layer]
        return Affine(found.W.to(hidden.device), found.b.to(hidden.device))(hidden)

    def check_model(self, record: ModelRecord) -> None:
        """Refuse another model than the one whose streams these maps are fitted to.

        Raises:
            UserError: if it has other weights.
        """
        require(
            record.weight_digest == self.model.weight_digest,
            f"the tuned lens belongs to {self.model.hub_id} with weights "
            f"{self.model.weight_digest}, but the model is {record.hub_id} with weights "
            f"{record.weight_digest}; give the model that the lens was fitted to",
        )

    def save(self, folder: Path) -> None:
        """Write the maps and what is known of them to a new folder."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        tensors = {
            f"{layer}.{name}": getattr(found, name).contiguous()
            for layer, found in self.maps.items()
            for name in ("W", "b")
        }
        save_file(tensors, folder / _MAPS)
        about = {"digest": self.digest, "model": self.model.to_json(), "judged": self.judged}
        write_json(folder / _ABOUT, about | {"layers": sorted(self.maps)})
        seal(folder)


def fitted_digest(folder: Path) -> str | None:
    """Return the digest of the maps in a folder; None if they are not there or damaged."""
    try:
        check_whole(folder / _MAPS, _ANEW)
        check_whole(folder / _ABOUT, _ANEW)
        return read_object(folder / _ABOUT, _ANEW).get("digest", str)
    except UserError:
        return None


def load_tuned(folder: Path) -> TunedLens:
    """Read the maps in a folder, such as `runs/default/tuned_lens`.

    Raises:
        UserError: if there are none, or their files are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require(
        (folder / _ABOUT).is_file(),
        f"{folder} contains no maps of a tuned lens; fit them with: sae lens tuned=true "
        "cache=...",
    )
    for name in (_MAPS, _ABOUT):
        check_whole(folder / name, _ANEW)
    about = read_object(folder / _ABOUT, _ANEW)
    try:
        tensors = load_file(folder / _MAPS)
        layers = about.get("layers", list)
        maps = {i: Affine(tensors[f"{i}.W"], tensors[f"{i}.b"]) for i in layers}
    except (OSError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder / _MAPS} is damaged ({error}); {_ANEW}") from error
    model = ModelRecord.from_json(about.part("model"))
    return TunedLens(maps, about.get("digest", str), model, about.get("judged", dict))
