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
from sae.dictionary.dictionary import CODER, Dictionary, Place, Port
from sae.dictionary.record import OURS, Record
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
    found = {**metadata}
    sites: Mapping[str, object] = {}
    ours = found.get(OURS)
    if isinstance(ours, dict) and _SITES in ours:
        sites = ours[_SITES]
        found[OURS] = {key: value for key, value in ours.items() if key != _SITES}
    cure = f"take {OURS} out of the file"
    said = JsonObject.of(str(path), f"{OURS}.{_SITES}", sites, cure)
    d_in, d_out = weights["W_enc"].shape[0], weights["W_dec"].shape[1]
    read_at = _place(path, said, found, "", d_in)
    write_at = _place(path, said, found, "_out", d_out)
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
            f"{path}: {key}={name}, but {sites.name}.{key} is of {site.hook_name}; "
            f"{sites.cure}",
        )
        require(
            site.width in (0, width),
            f"{path}: {sites.name}.{key} has width={site.width}, but the weights {width}; "
            f"{sites.cure}",
        )
        return replace(site, width=width)
    name = name or module
    if not name:
        return UNKNOWN
    return site_before_records(str(name), module, width) if module else str(name)


def metadata_of(dictionary: Dictionary) -> dict[str, object]:
    """Return what files say of a dictionary beside its weights; the pair of `dictionary_of`."""
    found = dictionary.record.to_json()
    (read,), (write,) = dictionary.reads, dictionary.writes
    ends = {"": read, "_out": write} if dictionary.is_transcoder else {"": read}
    hooks: dict[str, object] = {}
    sites: dict[str, object] = {}
    for end, port in ends.items():
        _describe(port, f"hook_name{end}", hooks, sites)
    if sites:
        ours = found.get(OURS)
        found[OURS] = {**(ours if isinstance(ours, dict) else {}), _SITES: sites}
    return {**found, **hooks}


def _describe(port: Port, key: str, hooks: dict[str, object], sites: dict[str, object]) -> None:
    if port.hook_name != UNKNOWN:
        hooks[key] = port.hook_name
    if port.site is not None:
        hooks[f"hf_{key}"] = port.site.path
        sites[key] = port.site.to_json()
