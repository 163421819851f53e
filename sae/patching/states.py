"""What a model computes on prompts of one length, and how far it prefers one answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.base import require
from sae.edits.copies import last_logits
from sae.models import LanguageModel, Site, list_sites, read_activations
from sae.models.resume import n_blocks, resumed
from sae.patching.pairs import Pair

HOOKS = {
    "residual": "hook_resid_post",
    "attention": "hook_attn_out",
    "mlp": "hook_mlp_out",
    "head": "attn.hook_z",
}
"""Which hook of each block a kind of place is."""
Metric = Float[Tensor, " prompt"]
Values = Float[Tensor, "prompt position d"]


@dataclass(frozen=True, slots=True)
class Places:
    """The places of a model that can be patched, and its streams."""

    model: LanguageModel
    n_layers: int
    n_heads: int
    sites: Mapping[str, Site]
    """By hook name."""

    @classmethod
    def of(cls, model: LanguageModel, kinds: Sequence[str]) -> "Places":
        """Find them.

        Raises:
            UserError: if the model cannot be run from each block on, or a kind of place is not
                in each block.
        """
        module, name = model.module, type(model.module).__name__
        n = n_blocks(module)
        require(
            n > 0,
            f"{name} has no blocks that pass on a single stream of activations, so nothing "
            "can be patched block by block",
        )
        sites = {site.hook_name: site for site in list_sites(module)}
        for kind in dict.fromkeys(["residual", *kinds]):
            for layer in range(n):
                hook = f"blocks.{layer}.{HOOKS[kind]}"
                require(hook in sites, f"sites={kind}: {name} has no {hook}")
        heads = int(module.config.get_text_config().num_attention_heads)
        return cls(model, n, heads, sites)

    def site(self, kind: str, layer: int) -> Site:
        """Return the place of a kind in a block."""
        return self.sites[f"blocks.{layer}.{HOOKS[kind]}"]

    @property
    def first(self) -> Site:
        """Where the first block reads the embeddings."""
        return self.sites["blocks.0.hook_resid_pre"]


@dataclass(frozen=True, slots=True)
class Answers:
    """The two answers to each prompt, whose logits are compared."""

    right: Int[Tensor, " prompt"]
    wrong: Int[Tensor, " prompt"]

    def difference(self, logits: Float[Tensor, "prompt 1 vocabulary"]) -> Metric:
        """Return logit(answer) − logit(wrong), in nats."""
        last = logits[:, -1].float()
        picked = (last.gather(1, ids[:, None])[:, 0] for ids in (self.right, self.wrong))
        right, wrong = picked
        return right - wrong

    def of(self, which: Int[Tensor, " row"]) -> "Answers":
        """Return those of some prompts, which may come several times."""
        return Answers(self.right[which], self.wrong[which])


@dataclass(frozen=True, slots=True)
class States:
    """Prompts of one length with all that patching reads of a run on them."""

    tokens: Int[Tensor, "prompt position"]
    answers: Answers
    streams: tuple[Float[Tensor, "prompt position d"], ...]
    """The residual stream before each block, and behind the last one."""
    at: Mapping[str, Float[Tensor, "prompt position d"]]
    """Activations by hook name."""
    metric: Float[Tensor, " prompt"]
    """Difference of the answers' logits."""

    def of(self, which: Int[Tensor, " row"]) -> "States":
        """Return the states of some of the prompts."""
        return States(
            self.tokens[which],
            self.answers.of(which),
            tuple(x[which] for x in self.streams),
            {name: x[which] for name, x in self.at.items()},
            self.metric[which],
        )


def states_of(
    places: Places,
    tokens: Int[Tensor, "prompt position"],
    answers: Answers,
    sites: Sequence[Site],
) -> States:
    """Run the model once on each prompt, and keep what stands at the sites."""
    module, n = places.model.module, places.n_layers
    posts = [places.site("residual", layer) for layer in range(n)]
    asked = {site.hook_name: site for site in [places.first, *posts, *sites]}
    # Copied, because gradients cannot be taken of what was made in inference mode.
    found = {
        k: v.clone() for k, v in read_activations(module, [*asked.values()], tokens).items()
    }
    streams = (found[places.first.hook_name], *(found[site.hook_name] for site in posts))
    with torch.no_grad(), resumed(module, n, streams[-1]):
        metric = answers.difference(last_logits(module, tokens, 1))
    return States(tokens, answers, streams, found, metric)


def both_states(
    places: Places, pairs: Sequence[Pair], sites: Sequence[Site]
) -> tuple[States, States]:
    """Return the states of the clean prompts and of the corrupt ones, which are as long."""
    device = places.model.device
    answers = Answers(
        torch.tensor([pair.answer for pair in pairs], device=device),
        torch.tensor([pair.wrong for pair in pairs], device=device),
    )
    clean, corrupt = (
        states_of(places, torch.stack(ids).to(device), answers, sites)
        for ids in ([p.clean for p in pairs], [p.corrupt for p in pairs])
    )
    return clean, corrupt
