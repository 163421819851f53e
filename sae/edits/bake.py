"""Edits that become weights: an ordinary checkpoint, which any engine runs without hooks."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.base import UserError
from sae.edits.changes import Add
from sae.edits.constants import Constant, Projection
from sae.edits.forward import Edit, edited
from sae.edits.positions import ALL
from sae.models import Site
from sae.models.calls import hooked, without_cache
from sae.models.hooks import read_activations
from sae.models.traced import probe_tokens

_ALLOWED = 1e-4
"""Difference of logits, as a share of the largest, that rounding explains in float32."""
_N_PROBED = 12
_BIASES = ("mlp_bias", "attention_bias", "use_bias", "bias")
"""Settings of configurations that give linear layers a bias."""


def baked(module: Any, changes: Sequence[Constant | Projection]) -> Any:
    """Return a copy of a causal model, on the CPU, that does by itself what edits did to it.

    What is added behind a block, or to what attention or the MLP give to the stream, becomes
    the bias of the last linear layer before it; a direction that is scaled in all that is
    written into the stream is scaled in the weights of all layers that write there. Which
    layers these are is found out: those whose outputs are the edited activations.

    Raises:
        UserError: where no linear layer stands there, or the class has no place for its bias.
    """
    found = copy.deepcopy(module).float().cpu()
    for one in changes:
        if isinstance(one, Constant):
            found = _with_bias(found, one)
        else:
            _scale_direction(found, one)
    return found


def save_baked(module: Any, tokenizer: Any, folder: Path) -> None:
    """Write a checkpoint that `from_pretrained` loads.

    Raises:
        UserError: if what it loads gives other logits.
    """
    from transformers import AutoModelForCausalLM

    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        # safetensors keeps them from everybody else, unlike the other files.
        weights.chmod((folder / "config.json").stat().st_mode)
    again = AutoModelForCausalLM.from_pretrained(folder).eval()
    if not _alike(_logits(again), _logits(module)):
        raise UserError(
            f"{type(module).__name__} does not load the baked weights again, so no "
            "checkpoint of these edits can be written"
        )


def _with_bias(module: Any, one: Constant) -> Any:
    """Return a model with a vector in the bias of the layer that writes at a site."""
    path = _writer(module, one.site)
    widened = _with_biases(module)
    layer = None if path is None else widened.get_submodule(path)
    if layer is None or layer.bias is None:
        raise UserError(
            f"no bias of {type(module).__name__} can do what an edit at "
            f"{one.site.hook_name} does: the class has no bias there, or something such as "
            "a norm comes in between"
        )
    with torch.no_grad():
        layer.bias += one.vector.to(layer.bias)
    return widened


def _writer(module: Any, site: Site) -> str | None:
    """Return the path of the linear layer whose output adds what is added at a site.

    A vector as long as the activations is added in both places, and the logits compared: a
    short one might change nothing.
    """
    (x,) = read_activations(module, [site], probe_tokens(module, _N_PROBED)).values()
    draw = torch.Generator().manual_seed(0)
    v = torch.randn(x.shape[-1], generator=draw)
    v = v * x.float().norm(dim=-1).mean() / v.norm()
    with edited(module, [Edit(site, Add(v), ALL)]):
        wanted = _logits(module)
    for path in reversed([*_linear_layers(module, site, x.shape[-1])]):
        with hooked(module, Site(path, path, "output"), lambda y: y + v):
            if _alike(_logits(module), wanted):
                return path
    return None


def _linear_layers(module: Any, site: Site, width: int) -> Iterator[str]:
    """Yield the paths of the linear layers of a site's block that give vectors of its width.

    Those inside the module of the site come last: where attention and the MLP are added to the
    stream side by side, the bias of either does the same.
    """
    block = site.module
    while block:
        above = block.rpartition(".")[0]
        if isinstance(module.get_submodule(above), nn.ModuleList):
            break
        block = above
    paths = [
        path
        for path, part in module.named_modules()
        if path.startswith(f"{block}." if block else "") and _width(part) == width
    ]
    yield from sorted(paths, key=lambda path: f"{path}.".startswith(f"{site.module}."))


def _width(part: Any) -> int | None:
    """Return the width of what a linear layer gives; None of anything else."""
    if isinstance(part, nn.Linear):
        return int(part.out_features)
    # GPT-2's, of transformers, whose weight is the other way round.
    return int(part.weight.shape[1]) if type(part).__name__ == "Conv1D" else None


def _with_biases(module: Any) -> Any:
    """Return the model with a bias, of zero if it had none, wherever its class can have one."""
    settings = copy.deepcopy(module.config)
    for name in _BIASES:
        if getattr(settings, name, None) is False:
            setattr(settings, name, True)
    widened = type(module)(settings).eval().requires_grad_(False)
    missing = widened.load_state_dict(module.state_dict(), strict=False).missing_keys
    own = dict(widened.named_parameters())
    for name in missing:
        if name in own and name.endswith("bias"):
            own[name].zero_()
    widened.generation_config = module.generation_config
    return widened if _alike(_logits(widened), _logits(module)) else module


def _scale_direction(module: Any, one: Projection) -> None:
    """Scale a direction in the weights of all layers that write into the stream."""
    kind = type(module).__name__
    head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
    if head is not None and head.weight is embedding.weight:
        # What is read from the stream is not what is written to it any more.
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        module.config.tie_word_embeddings = False
    paths = [_writer(module, site) for site in one.sites[1:]]
    if None in paths:
        at = one.sites[1 + paths.index(None)].hook_name
        raise UserError(
            f"{kind} has no linear layer whose output is {at}, so no weights can scale a "
            "direction there"
        )
    with edited(module, one.edits()):
        wanted = _logits(module)
    for path in paths:
        layer = module.get_submodule(path)
        # Rows of the output are those of nn.Linear's weight, and columns of Conv1D's.
        of_linear = isinstance(layer, nn.Linear)
        weight = layer.weight.t() if of_linear else layer.weight
        _put(layer, "weight", one.scaled(weight).t() if of_linear else one.scaled(weight))
        if layer.bias is not None:
            _put(layer, "bias", one.scaled(layer.bias))
    for part in module.modules():
        if isinstance(part, nn.Embedding) and part.weight.shape[1] == len(one.direction):
            _put(part, "weight", one.scaled(part.weight))
    if not _alike(_logits(module), wanted):
        raise UserError(
            f"{kind} does not write its embeddings into the stream as they are, so no "
            "weights can scale a direction there"
        )


def _put(layer: nn.Module, name: str, value: Float[Tensor, "..."]) -> None:
    kept = nn.Parameter(value.detach().contiguous(), requires_grad=False)
    setattr(layer, name, kept)


def _logits(module: Any) -> Tensor:
    tokens = probe_tokens(module, _N_PROBED)
    with torch.inference_mode():
        found: Tensor = module(tokens, **without_cache(module)).logits.clone()
    return found


def _alike(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= _ALLOWED * wanted.abs().max())
