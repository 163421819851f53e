"""What a file says of a dictionary: its record, and the places that it reads and writes.

SAELens's keys are `hook_name` and `hook_name_out`, and `hf_hook_name` and `hf_hook_name_out`
for the modules; the whole sites are kept under `sae_atlas.sites`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from sae.base import UNKNOWN, JsonObject, require, taken
from sae.dictionary.activations import Activation
from sae.dictionary.dictionary import CODER, Dictionary, Place
from sae.dictionary.record import OURS, Record, ours_in
from sae.models.site import Site, site_before_records

_SITES = "sites"


def dictionary_of(
    weights: Mapping[str, Tensor],
    activation: Activation,
    path: Path,
    metadata: Mapping[str, object],
    *,
    transcoder: bool = False,
) -> Dictionary:
    """Return a dictionary of weights, by name, with what the file `path` says of it.

    Args:
        weights: `W_enc`, `b_enc`, `W_dec`, `b_dec` and perhaps `W_skip`.
        transcoder: whether it is one even where its hooks and weights leave that open.

    Raises:
        UserError: if shapes do not fit, or our own part of the metadata is damaged.
    """
    ours = ours_in(str(path), metadata)
    sites = ours.part(_SITES) if _SITES in ours else replace(ours, values={})
    found = {**metadata}
    d_in, d_out = weights["W_enc"].shape[0], weights["W_dec"].shape[1]
    read_at = _place(path, sites, found, "", d_in)
    write_at = _place(path, sites, found, "_out", d_out)
    transcodes = transcoder or found.get("transcoder") is True
    if write_at == UNKNOWN and d_in == d_out and not transcodes:
        write_at = read_at
    W_enc, b_enc, W_dec, b_dec = (weights[name] for name in CODER)
    made = replace(
        Dictionary.from_weights(W_enc, b_enc, W_dec, b_dec, activation),
        W_skip=weights.get("W_skip"),
        record=Record.from_json(str(path), found),
    ).placed(read_at, write_at)
    if transcoder and not made.is_transcoder:
        return replace(made, record=replace(made.record, transcoder=True))
    return made


def _place(
    path: Path, sites: JsonObject, found: dict[str, object], end: str, width: int
) -> Place:
    """Take what a file says of one end of a dictionary out of `found`."""
    key = f"hook_name{end}"
    name = found.pop(key, None)
    module = taken(found, f"hf_{key}", str)
    if key in sites:
        site = Site.from_json(sites.part(key))
        require(
            name == site.hook_name,
            f"{path}: {key}={name}, but {sites.name}.{key} says {site.hook_name}; {sites.cure}",
        )
        require(
            site.width in (0, width),
            f"{path}: {sites.name}.{key} has width={site.width}, but the weights have "
            f"{width}; {sites.cure}",
        )
        return replace(site, width=width)
    name = name or module
    if not name:
        return UNKNOWN
    return site_before_records(str(name), module, width) if module else str(name)


def metadata_of(dictionary: Dictionary) -> dict[str, object]:
    """Return what files say of a dictionary beside its weights; the pair of `dictionary_of`."""
    found = dictionary.record.to_json()
    ends = {"hook_name": dictionary.reads[0]}
    if dictionary.is_transcoder:
        ends["hook_name_out"] = dictionary.writes[0]
    sites = {key: port.site.to_json() for key, port in ends.items() if port.site}
    if sites:
        found[OURS] = {**ours_in("", found).values, _SITES: sites}
    for key, port in ends.items():
        if port.hook_name != UNKNOWN:
            found[key] = port.hook_name
        if port.site:
            found[f"hf_{key}"] = port.site.path
    return found
