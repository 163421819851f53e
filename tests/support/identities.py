"""What TransformerLens's names promise, checked on a model with plain torch hooks alone."""

from contextlib import ExitStack
from typing import Any

import torch
from support.families import first
from torch import Tensor, nn

from sae.edits import ALL, Edit, Put, edited
from sae.models.calls import without_cache
from sae.models.hooks import list_sites
from sae.models.site import Site

IDS = torch.tensor([[5, 40, 11, 90, 23, 71, 8], [60, 3, 77, 31, 99, 14, 52]])
ENDS = ("hook_normalized_resid_post", "hook_resid_post")


def scrambled(model: nn.Module) -> nn.Module:
    """Move every weight: many are ones or zeros at first, and hide what is done with them."""
    generator = torch.Generator().manual_seed(1)
    for weight in dict.fromkeys(model.parameters()):
        noise = torch.rand(weight.shape, generator=generator)
        weight.data += (noise - 0.5).to(weight) * (0.6 if weight.dim() < 2 else 0.3)
    return model


def seen_at(model: nn.Module, sites: list[Site]) -> dict[str, Tensor]:
    """The activations at sites in one whole forward pass."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as hooks, torch.no_grad():
        for site in sites:
            module = model.get_submodule(site.module)

            def after(_: Any, __: Any, output: Any, name: str = site.hook_name) -> None:
                x = output[0] if isinstance(output, list) else first(output)
                seen[name] = x.clone().view(*IDS.shape, -1)

            def before(_: Any, args: Any, kwargs: Any, name: str = site.hook_name) -> None:
                tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
                x = kwargs.get("hidden_states", tensors[0])
                seen[name] = x.clone().view(*IDS.shape, -1)

            if site.side == "output":
                hooks.callback(module.register_forward_hook(after).remove)
            else:
                handle = module.register_forward_pre_hook(before, with_kwargs=True)
                hooks.callback(handle.remove)
        model(IDS, **without_cache(model))
    return seen


def by_block(model: nn.Module) -> dict[int, dict[str, Site]]:
    found: dict[int, dict[str, Site]] = {}
    for site in list_sites(model):
        _, block, hook = site.hook_name.split(".", 2)
        found.setdefault(int(block), {})[hook] = site
    return found


def check_identities(model: nn.Module) -> None:
    """Every name that a model's places have keeps what it promises, also when it is edited."""
    blocks = by_block(model)
    seen = seen_at(model, list_sites(model))
    for i, sites in blocks.items():
        x = {hook: seen[site.hook_name] for hook, site in sites.items()}
        check_sums(model, sites, x)
        check_projections(model, sites, x)
        end = next((hook for hook in ENDS if hook in x), None)
        if end and "hook_resid_pre" in blocks.get(i + 1, {}):
            assert torch.equal(x[end], seen[f"blocks.{i + 1}.hook_resid_pre"]), (i, end)
    for sites in blocks.values():
        if "hook_resid_mid" in sites:
            check_edit(model, sites)


def check_sums(model: nn.Module, sites: dict[str, Site], x: dict[str, Tensor]) -> None:
    pre, mid, post = (x.get(f"hook_resid_{name}") for name in ("pre", "mid", "post"))
    attn, mlp = x.get("hook_attn_out"), x.get("hook_mlp_out")
    if mid is None and mlp is not None:
        close(post, pre + attn + mlp)
    elif mid is None and attn is not None:
        close(post, pre + attn)
    elif mid is not None:
        if attn is not None:
            close(mid, pre + attn)
        if mlp is not None:
            close(post, base(model, sites, mid) + mlp)
    if "hook_mlp_in" in x:
        close(x["hook_mlp_in"], pre if mid is None else mid)


def base(model: nn.Module, sites: dict[str, Site], mid: Tensor) -> Tensor:
    """What the MLP's output is added to: the middle, in BERT's form behind its norm."""
    if "hook_normalized_resid_post" not in sites:
        return mid
    return model.get_submodule(sites["hook_resid_mid"].module)(mid)


def check_projections(model: nn.Module, sites: dict[str, Site], x: dict[str, Tensor]) -> None:
    for inner, added in (("attn.hook_z", "hook_attn_out"), ("mlp.hook_post", "hook_mlp_out")):
        if inner in x and added in x:
            product = model.get_submodule(sites[inner].module)(x[inner])
            behind = model.get_submodule(sites[added].module)
            if not torch.allclose(product, x[added], rtol=1e-4, atol=1e-5):
                close(x[added], first(behind(product)))
    if "mlp.hook_in" in x and "hook_mlp_in" in x:
        norm = model.get_submodule(sites["hook_mlp_in"].module)
        if sites["hook_mlp_in"].module != sites["mlp.hook_in"].module:
            close(x["mlp.hook_in"], norm(x["hook_mlp_in"]))


def check_edit(model: nn.Module, sites: dict[str, Site]) -> None:
    """What is put in the middle of the stream is what the MLP's output is added to."""
    mid, end = sites["hook_resid_mid"], "hook_resid_post"
    if not {end, "hook_mlp_out"} <= {*sites}:
        return
    (old,) = seen_at(model, [mid]).values()
    new = torch.randn(old.shape, generator=torch.Generator().manual_seed(2)).to(old)
    with edited(model, [Edit(mid, Put(new), ALL)]):
        seen = seen_at(model, [sites["hook_mlp_out"], sites[end]])
    mlp, post = (seen[sites[hook].hook_name] for hook in ("hook_mlp_out", end))
    close(post, base(model, sites, new) + mlp)


def close(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
