"""How a cache keeps the sites that its activations were read at, under the hooks' names."""

from dataclasses import replace

from sae.base import JsonObject
from sae.models import Site
from sae.models.site import named_in_stream


def site_record(site: Site) -> dict[str, object]:
    """Return what a cache says of the site of a hook, under the hook's name."""
    record = site.to_json()
    del record["hook_name"]
    return record


def recorded_site(hook_name: str, found: JsonObject) -> Site:
    """Return the site of a hook, from what the cache says of it under the hook's name.

    Caches from before sites were recorded have the width as `d_in`; whether such a hook is in
    the residual stream follows from its name.
    """
    upgraded = {
        "hook_name": hook_name,
        "width": found.values.get("d_in"),
        "side": "output",
        "in_stream": named_in_stream(hook_name),
    }
    return Site.from_json(replace(found, values={**upgraded, **found.values}))
