"""What arms of a comparison write, and what the model left alone reads in it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.dictionary import Dictionary
from sae.edits import ALL_BUT_FIRST, Add, Edit
from sae.edits.copies import Copies
from sae.models import LanguageModel, Site, locate
from sae.models.calls import hooked
from sae.steering.arms import reconstruction
from sae.steering.material import Ids
from sae.steering.repetition import distinct_2, longest_repeat
from sae.writing import Sampling, SharedNoise, continued_texts, generate


@dataclass(frozen=True, slots=True)
class Writer:
    """How one arm writes: a vector that it adds, or a sentence before, or a reconstruction."""

    vector: Float[Tensor, " d_out"]
    before: tuple[int, ...] | None = None
    """Ids that take the place of what a prompt begins with."""
    reconstructs: bool = False


Figures = dict[str, Float[Tensor, "writer prompt"]]


@dataclass(frozen=True, slots=True)
class Desk:
    """A model that writes, and a dictionary that reads what was written."""

    copies: Copies
    dictionary: Dictionary
    reads: Site

    @classmethod
    def of(cls, model: LanguageModel, dictionary: Dictionary) -> "Desk":
        """Return the desk of a model and one of its dictionaries."""
        write, read = dictionary.writes[0], dictionary.reads[0]
        copies = Copies(model, locate(model.module, write.place), write.normalisation)
        moved = dictionary.to(model.device)
        return cls(copies, moved, locate(model.module, read.place))

    def write(
        self, writers: Sequence[Writer], prompts: Sequence[Ids], sampling: Sampling
    ) -> list[Int[Tensor, "writer new_position"]]:
        """Return what all write after each prompt, all with the same noise after it."""
        rows = [self._prompt(writer, prompt) for prompt in prompts for writer in writers]
        model, width = self.copies.model, max(map(len, rows))
        padded = [
            nn.functional.pad(r, (width - len(r), 0), value=model.marks.pad) for r in rows
        ]
        lengths = torch.tensor([[len(row)] for row in rows])
        mask = (torch.arange(width) >= width - lengths).long().to(model.device)
        vectors = torch.stack([writer.vector for writer in writers]).repeat(len(prompts), 1)
        added = Add(vectors.to(model.device), self.copies.normalisation)
        edits = [Edit(self.copies.site, added, ALL_BUT_FIRST)]
        spliced = [writer.reconstructs for _ in prompts for writer in writers]
        if any(spliced):
            site = self.copies.site
            edits.append(reconstruction(self.dictionary, self.reads, site, spliced))
        noise = SharedNoise(sampling, n_groups=len(prompts))
        written = generate(
            model,
            torch.stack(padded).to(model.device),
            edits,
            replace(sampling, temperature=0),
            noise=noise,
            attention_mask=mask,
        )
        return [*torch.split(written, len(writers))]

    def _prompt(self, writer: Writer, prompt: Ids) -> Ids:
        if writer.before is None:
            return prompt
        return torch.cat(
            [
                torch.tensor(writer.before).to(prompt),
                prompt[len(self.copies.model.marks.begin) :],
            ]
        )

    def read(
        self,
        feature: int,
        prompts: Sequence[Ids],
        written: Sequence[Int[Tensor, "writer new_position"]],
    ) -> Figures:
        """Return what the model left alone finds in what was written.

        `round_trip` is the highest activation of the feature on the written tokens,
        `log_perplexity` their mean −log p, both after the plain prompt; `distinct_2` and
        `longest_repeat` say how much is said again.
        """
        found: dict[str, list[Tensor]] = {"round_trip": [], "log_perplexity": []}
        for prompt, texts in zip(prompts, written, strict=True):
            # Some at a time: each position has logits of the whole vocabulary.
            read = [self._read_after(feature, prompt, some) for some in torch.split(texts, 8)]
            found["round_trip"].append(torch.cat([activations for activations, _ in read]))
            found["log_perplexity"].append(-torch.cat([log_p for _, log_p in read]))
        repeats = {
            name: [
                torch.tensor([float(figure(ids)) for ids in texts.tolist()])
                for texts in written
            ]
            for name, figure in (("distinct_2", distinct_2), ("longest_repeat", longest_repeat))
        }
        return {name: torch.stack(rows, 1) for name, rows in (found | repeats).items()}

    def _read_after(
        self, feature: int, prompt: Ids, texts: Int[Tensor, "writer new_position"]
    ) -> tuple[Float[Tensor, " writer"], Float[Tensor, " writer"]]:
        module, seen = self.copies.model.module, list[Tensor]()
        whole = torch.cat([prompt.to(texts).expand(len(texts), -1), texts], 1)
        with torch.inference_mode(), hooked(module, self.reads, seen.append):
            logits = module(whole, use_cache=False).logits[:, len(prompt) - 1 : -1]
            # Activations of one feature may depend on the others, as in a topk.
            acts = self.dictionary.encode(seen[0][:, len(prompt) :].float())[..., feature]
        log_p = logits.float().log_softmax(-1).gather(2, texts[..., None]).squeeze(2)
        return acts.float().amax(1).cpu(), log_p.mean(1).cpu()

    def texts(
        self, prompts: Sequence[Ids], written: Sequence[Int[Tensor, "writer new_position"]]
    ) -> list[list[str]]:
        """Return what was written, as text, by prompt and writer."""
        return [
            continued_texts(self.copies.model, prompt.expand(len(ids), -1), ids)
            for prompt, ids in zip(prompts, written, strict=True)
        ]
