"""`PatchResults`: what patching has found, as it lies in its folder."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.base import UserError, read_object, require
from sae.edits import EditRecord, Edits, edit
from sae.edits.save import save_edits
from sae.patching.features import PARTS
from sae.patching.study import ALONG_POSITIONS

if TYPE_CHECKING:
    import pyarrow

TABLE, SUMMARY = "patching.parquet", "summary.json"
DIRECTIONS, PICTURE = "directions.safetensors", "patching.png"
_STRONGEST = 10


@dataclass(frozen=True)
class PatchResults:
    """Effects of patching, read from the folder that `sae patch` has written."""

    folder: Path

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """The pairs, the agreement with exact patching, the controls and the cost.

        Raises:
            UserError: if the folder holds no results.
        """
        require(
            (self.folder / SUMMARY).is_file(),
            f"{self.folder} contains no results of patching; give a folder that sae patch "
            "wrote",
        )
        found: Mapping[str, Any] = read_object(
            self.folder / SUMMARY, "remove the folder and run sae patch again"
        ).values
        return found

    @cached_property
    def table(self) -> "pyarrow.Table":
        """A table with a record for each mean effect."""
        import pyarrow.parquet

        return pyarrow.parquet.read_table(self.folder / TABLE)

    def to_pandas(self) -> Any:
        """Return all mean effects as a data frame with a record for each."""
        return self.table.to_pandas()

    def strongest(self, n: int = _STRONGEST, patch: str = "denoising") -> list[dict[str, Any]]:
        """Return the records of the largest effects, exact ones where there are any."""
        rows = [row for row in self.table.to_pylist() if row["patch"] == patch]
        exact = [row for row in rows if row["method"] == "exact"] or rows
        return sorted(exact, key=lambda row: -abs(row["effect"]))[:n]

    def plot(self) -> Any:
        """Return the heat maps as a picture of Pillow, which a notebook shows.

        Raises:
            UserError: if there are none.
        """
        from PIL import Image

        require(
            (self.folder / PICTURE).exists(),
            f"{self.folder} has no picture, because no kind of place was patched block by "
            "block",
        )
        with Image.open(self.folder / PICTURE) as picture:
            return picture.copy()

    def __repr__(self) -> str:
        """Return one line: pairs, and where they are."""
        n = sum(group["n_pairs"] for group in self.summary["groups"])
        model = self.summary["model"]
        return f"PatchResults({n} pairs of {model}, {len(self.table):,} effects, {self.folder})"

    def _repr_html_(self) -> str:
        """Return the strongest effects as a table, for notebooks."""
        names = ("site", "layer", "head", "position", "effect", "low", "high", "n")
        lines = []
        for row in self.strongest():
            shown = [
                ""
                if row[k] is None
                else f"{row[k]:.2f}"
                if isinstance(row[k], float)
                else row[k]
                for k in names
            ]
            cells = "".join(f"<td>{html.escape(str(value))}</td>" for value in shown)
            lines.append(f"<tr>{cells}</tr>")
        head = "".join(f"<th>{name}</th>" for name in names)
        return f"<table><tr>{head}</tr>{''.join(lines)}</table>"

    def edits(
        self,
        site: str,
        *,
        layer: int | None = None,
        position: int | None = None,
        head: int | None = None,
        feature: int | None = None,
        group: int = 0,
    ) -> Edits:
        """Return what was found at a place as edits, which can be saved and made elsewhere.

        At a position of the residual stream, attention, the MLP, or of what a dictionary makes
        of them, they add the mean of clean less corrupt activations there; a head is ablated;
        of a feature its mean change is added. A direction is a tensor then, which
        `sae patch edit` writes beside the edit file.

        Args:
            site: `residual`, `attention`, `mlp`, `head`, `feature`, or of a dictionary
                `features`, `error` or `features+error`.
            layer: block of the place; what is of a dictionary brings its own.
            position: token of the prompt, from 0; the last one is the last of any prompt.
            head: number of a head.
            feature: number of a feature.
            group: pairs whose positions mean the same.

        Raises:
            UserError: if nothing was found there.
        """
        about = self.summary
        if site == "feature":
            record = self._of_feature(feature)
        elif site == "head":
            require(
                head is not None and layer is not None,
                "give the layer and the number of the head",
            )
            hook = _hook(about, site, layer)
            record = edit(at=hook, head=head, do="ablate")
        elif site in PARTS:
            require(position is not None, f"give position, which site={site} needs")
            require(about["dictionary"] is not None, "no dictionary was patched")
            hook = about["dictionary"]["hook_name"]
            record = self._of_direction(site, hook, (0, position or 0), group)
        elif site in ALONG_POSITIONS:
            require(
                layer is not None and position is not None,
                f"give layer and position, which site={site} needs",
            )
            hook = _hook(about, site, layer)
            record = self._of_direction(site, hook, (layer or 0, position or 0), group)
        else:
            raise UserError(
                f"site={site} cannot be edited; give residual, attention, mlp, head, "
                f"feature or {', '.join(PARTS)}"
            )
        return Edits((record,), about["model_name"], about["weight_digest"])

    def save(self, out: Path, site: str, **where: Any) -> None:
        """Write what `edits` returns to a file, and a direction beside it.

        Raises:
            UserError: if nothing was found there, or a file is there already.
        """
        save_edits(self.edits(site, **where), out)

    def direction(
        self, site: str, layer: int, position: int, group: int = 0
    ) -> Float[Tensor, " d"]:
        """Return the mean of clean less corrupt activations at a place.

        Of a dictionary's part the layer is 0, for it is of one block alone.

        Raises:
            UserError: if there is no such place.
        """
        from safetensors.torch import load_file

        held = load_file(self.folder / DIRECTIONS)
        name = f"{group}.{site}"
        require(name in held, f"{self.folder} has no directions of site={site}, group={group}")
        found: Tensor = held[name]
        for key, value, n in zip(
            ("layer", "position"), (layer, position), found.shape[:2], strict=True
        ):
            require(0 <= value < n, f"{key}={value} is out of range; there are 0 to {n - 1}")
        return found[layer, position]

    def _of_direction(
        self, site: str, hook_name: str, place: tuple[int, int], group: int
    ) -> EditRecord:
        position = place[1]
        direction = self.direction(site, *place, group)
        n = len(self.summary["groups"][group]["tokens"])
        length = float(torch.linalg.vector_norm(direction))
        require(length > 0, f"clean and corrupt are the same at position {position}")
        last = position == n - 1
        where = [-1, None] if last else [position, position + 1]
        return edit(
            at=hook_name,
            direction=direction,
            do="add",
            by=length,
            where={"prompt": [where], "generated": "none", "except": []},
        )

    def _of_feature(self, feature: int | None) -> EditRecord:
        dictionary = self.summary["dictionary"]
        changes = {} if dictionary is None else dictionary["code_changes"]
        require(
            feature is not None and str(feature) in changes,
            f"feature={feature} was not patched; these were: {', '.join(changes) or 'none'}",
        )
        by = changes[str(feature)]
        return edit(dictionary=dictionary["name"], feature=feature, do="add", by=by)


def _hook(about: Mapping[str, Any], site: str, layer: int | None) -> str:
    require(
        site in about["hook_names"],
        f"site={site} was not patched; run sae patch sites=[{site}]",
    )
    n = about["n_layers"]
    require(
        layer is not None and 0 <= layer < n,
        f"layer={layer} is out of range; give 0 to {n - 1}",
    )
    found: str = about["hook_names"][site].format(layer=layer)
    return found
