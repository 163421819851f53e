"""Which places of a block have a TransformerLens name: those where its identities hold.

In most models `resid_pre + attn_out = resid_mid` and `resid_mid + mlp_out = resid_post`. In
parallel blocks `resid_pre + attn_out + mlp_out = resid_post`, and there is no middle. In BERT's
the sum goes through a norm each time: `norm(resid_mid) + mlp_out = resid_post`. What a name
stands for is found by trying the sums on the tensors of a forward pass, never by what modules
are called; only whether an addend is attention's follows from that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.models.site import Side

Place = tuple[str, Side]
"""A module's path inside the block, and its side."""


@dataclass(frozen=True)
class Held:
    """What stood at a place: a copy, as some models add to a tensor where it is."""

    copy: Tensor
    itself: Tensor


Seen = Mapping[Place, Held]
"""What stood at the places of a block in one forward pass, in the order of the calls."""

NAMES = {
    "hook_resid_pre": "the stream that the block reads",
    "hook_resid_mid": "hook_resid_pre + hook_attn_out, which hook_mlp_out is added to",
    "hook_resid_post": "the stream that the block returns",
    "hook_normalized_resid_post": "hook_resid_post behind a norm that the stream goes through",
    "hook_attn_out": "what attention adds to hook_resid_pre",
    "hook_mlp_out": "what the MLP adds to the stream",
    "attn.hook_z": "what attention's last projection reads",
    "mlp.hook_post": "what the MLP's last projection reads",
    "mlp.hook_in": "what the MLP reads",
    "hook_mlp_in": "the stream as the MLP's branch alone reads it",
    "ln2.hook_normalized": "what the norm before the MLP has made before its gain",
}
"""TransformerLens's names of places in a block, and what they stand for."""

_MOST_STEPS = 8


@dataclass(eq=False)
class Value:
    """One tensor of a block, and everywhere that it stands."""

    x: Float[Tensor, " element"]
    """The tensor itself, in float64."""
    eps: float
    """Relative spacing of numbers in the type that it was computed in."""
    width: int
    order: int
    places: list[Place] = field(default_factory=list)
    """The outermost modules first, and of those the first to be called."""

    def at(self, side: Side) -> list[str]:
        """Return the paths of the modules at whose `side` it stands."""
        return [path for path, its_side in self.places if its_side == side]


@dataclass
class Form:
    """How a block adds up: which tensors its names stand for."""

    attn: Value | None = None
    """What is added first, or of the two that are added together the one of attention."""
    mlp: Value | None = None
    mid: Value | None = None
    post: Value | None = None
    """None where the block's output is no sum that is known, or is one itself."""
    mlp_reads: Value | None = None
    """The stream that the MLP branch starts from."""
    base: Value | None = None
    """What the MLP's output is added to: the middle, or the middle behind a norm."""
    factors: tuple[float, float] = (1.0, 1.0)
    """What the block multiplies the two addends by."""


def holds(total: Value, terms: Sequence[Value], factors: Sequence[float] = ()) -> bool:
    """Return whether the terms add up to a total, to the rounding of the types they are in.

    A term that is lost in that rounding everywhere shows nothing.
    """
    # A few numbers tell most that do not fit.
    return _adds_up(total, terms, factors, slice(16)) and _adds_up(
        total, terms, factors, slice(None), shown=0.01
    )


def _adds_up(
    total: Value,
    terms: Sequence[Value],
    factors: Sequence[float],
    part: slice,
    shown: float | None = None,
) -> bool:
    """Compare a part of the numbers; of each term more than a share `shown` has to matter."""
    found = total.x[part]
    scaled = [t.x[part] * f for t, f in zip(terms, factors or [1.0] * len(terms), strict=True)]
    size = found.abs() + sum(x.abs() for x in scaled)
    allowed = max(value.eps for value in (total, *terms)) * size
    if bool(((sum(scaled) - found).abs() > allowed).any()):
        return False
    if shown is None:
        return True
    return all(float((x.abs() > 4 * allowed).double().mean()) > shown for x in scaled)


def value_of(tensor: Float[Tensor, "*place d"]) -> Value:
    """Return a tensor that stands for itself."""
    x = tensor.detach().double().cpu().flatten() + 0.0
    return Value(x, torch.finfo(tensor.dtype).eps, tensor.shape[-1], 0)


def values_of(seen: Seen) -> list[Value]:
    """Return the different tensors of a block in the order in which they appear."""
    found: dict[tuple[int, bytes], Value] = {}
    ranked = sorted(enumerate(seen.items()), key=lambda entry: _depth(entry[1][0][0]))
    for order, (place, held) in ranked:
        value = replace(value_of(held.copy), order=order)
        value = found.setdefault((value.width, value.x.numpy().tobytes()), value)
        value.order = min(value.order, order)
        value.places.append(place)
    return sorted(found.values(), key=lambda value: value.order)


def _depth(path: str) -> int:
    return path.count(".") + 1 if path else 0


@dataclass(frozen=True)
class Middle:
    """Where the middle of a block's stream is, and the sum that follows it."""

    mid: Place
    mlp: Place
    total: Place
    base: Place | None
    """What the MLP's output is added to, where that is not the middle itself."""
    factor: float


class Block:
    """The tensors of one block in one forward pass."""

    def __init__(self, module: nn.Module, seen: Seen) -> None:
        self.module, self.seen = module, seen
        self.values = values_of(seen)
        self.value = {place: value for value in self.values for place in value.places}
        self.pre, self.out = self.value["", "input"], self.value["", "output"]
        ends = (self.pre, self.out)
        self.inner = [v for v in self.values if v.width == self.pre.width and v not in ends]
        forms = self._sequential, self._post_norm, self._parallel, self._lone
        self.form: Form = next(filter(None, (form() for form in forms)), Form())

    @property
    def recognised(self) -> bool:
        """Return whether the block is one of the sums that are known."""
        return self.form != Form()

    def middle(self) -> Middle | None:
        """Return the sum behind the middle of the stream, if the block has one."""
        form = self.form
        if form.mid is None or form.mlp is None:
            return None
        normed = form.post is not None and form.base is not None
        return Middle(
            form.mid.places[0],
            form.mlp.places[0],
            (form.post or self.out).places[0],
            form.base.places[0] if normed and form.base else None,
            form.factors[1],
        )

    def names(self) -> dict[str, Place]:
        """Return the names inside the block whose identities hold, and their places."""
        form = self.form
        found: dict[str, Place] = {"hook_resid_pre": ("", "input")}
        normed = form.post is not None or (form == Form() and self._is_normed(self.out))
        if form.post is not None:
            found["hook_resid_post"] = form.post.places[0]
        found["hook_normalized_resid_post" if normed else "hook_resid_post"] = ("", "output")
        if form.mid is not None:
            found["hook_resid_mid"] = form.mid.places[0]
        if form.attn is not None and self._is_attention(form.attn):
            if form.factors[0] == 1:
                found["hook_attn_out"] = form.attn.places[0]
            if projection := self._projection(form.attn):
                found["attn.hook_z"] = (projection, "input")
        if form.mlp is not None and not self._is_attention(form.mlp):
            if form.factors[1] == 1:
                found["hook_mlp_out"] = form.mlp.places[0]
            if projection := self._projection(form.mlp):
                found["mlp.hook_post"] = (projection, "input")
            found |= self._read_by_mlp()
        return found

    def _sequential(self) -> Form | None:
        for mid in self.inner:
            mlp = self._addend(self.out, mid)
            attn = self._addend(mid, self.pre) if mlp else None
            if mlp and attn:
                factors = attn[1], mlp[1]
                return Form(attn[0], mlp[0], mid, None, mid, mid, factors)
        return None

    def _post_norm(self) -> Form | None:
        """Each sum goes through a norm, as in BERT, and what is next is added to that."""
        for last in self._norms(self.out):
            post = self.value[last, "input"]
            for base in self.inner:
                for norm in self._norms(base):
                    mid = self.value[norm, "input"]
                    mlp = self._addend(post, base)
                    attn = self._addend(mid, self.pre) if mlp else None
                    if mlp and attn and mlp[1] == attn[1] == 1:
                        return Form(attn[0], mlp[0], mid, post, base, base)
        return None

    def _parallel(self) -> Form | None:
        for i, one in enumerate(self.inner):
            for other in self.inner[i + 1 :]:
                two = sorted((one, other), key=lambda v: not self._is_attention(v))
                if self._is_attention(two[0]) and holds(self.out, (self.pre, *two)):
                    return Form(attn=two[0], mlp=two[1], mlp_reads=self.pre)
        return None

    def _lone(self) -> Form | None:
        """One addend, as in a block of attention alone or of a recurrent layer."""
        found = self._addend(self.out, self.pre)
        return Form(attn=found[0], factors=(found[1], 1.0)) if found else None

    def _addend(self, total: Value, base: Value) -> tuple[Value, float] | None:
        """Return what is added to `base` to give `total`, and what it is multiplied by."""
        if base.order >= total.order:
            return None
        fitting = [v for v in self.inner if v not in (total, base) and v.order < total.order]
        for value in fitting:
            if holds(total, (base, value)):
                return value, 1.0
        difference = total.x - base.x
        for value in fitting:
            factor = float(difference @ value.x / (value.x @ value.x).clamp_min(1e-300))
            if holds(total, (base, value), (1.0, factor)):
                return value, factor
        return None

    def _norms(self, value: Value) -> list[str]:
        """Return the norms, or other modules without matrices, that give a value."""
        paths = [p for p in value.at("output") if p and (p, "input") in self.value]
        return [path for path in paths if not _has_matrix(self.module.get_submodule(path))]

    def _is_normed(self, value: Value) -> bool:
        return any(
            [*self.module.get_submodule(path).parameters()] for path in self._norms(value)
        )

    def _is_attention(self, value: Value) -> bool:
        path = next(iter(value.at("output")), "")
        kind = type(self.module.get_submodule(path)).__name__ if path else ""
        return "att" in path.lower() or "attention" in kind.lower()

    def _projection(self, value: Value) -> str | None:
        """Return the matrix whose product the value is, perhaps behind a norm."""
        for _ in range(_MOST_STEPS):
            for path in value.at("output"):
                weight = getattr(self.module.get_submodule(path), "weight", None)
                is_matrix = isinstance(weight, Tensor) and weight.dim() == 2
                if is_matrix and (path, "input") in self.value:
                    return path
            norms = self._norms(value)
            if not norms:
                return None
            value = self.value[norms[0], "input"]
        return None

    def _read_by_mlp(self) -> dict[str, Place]:
        """Follow the MLP's branch back to the stream, and name what it reads on the way."""
        form = self.form
        chain, value = list[str](), form.mlp
        while value is not None and value is not form.mlp_reads and len(chain) < _MOST_STEPS:
            giving = self._giving(value, chain[-1] if chain else None)
            if giving is None:
                return {}
            chain.append(giving)
            value = self.value[giving, "input"]
        matrices = [p for p in chain if _has_matrix(self.module.get_submodule(p))]
        if value is None or value is not form.mlp_reads or not matrices:
            return {}
        first = matrices[-1]
        read = self.value[first, "input"]
        around = [p for p in read.at("input") if p and f"{first}.".startswith(f"{p}.")]
        found: dict[str, Place] = {"mlp.hook_in": (around[0], "input")}
        if form.mid is not None and form.post is not None:
            return found | {"hook_mlp_in": form.mid.places[0]}
        if all(f"{p}.".startswith(f"{around[0]}.") for p in self._reading(around[0])):
            found["hook_mlp_in"] = (chain[-1], "input")
        if chain[-1] != first and self._only_normalises(chain[-1]):
            found["ln2.hook_normalized"] = (chain[-1], "output")
        return found

    def _giving(self, value: Value, reader: str | None) -> str | None:
        """Return the outermost module that gives a value, the very tensor that is read if any.

        With fresh weights two norms of one stream give equal tensors.
        """
        paths = [p for p in value.at("output") if p and (p, "input") in self.value]
        earlier = [p for p in paths if self.value[p, "input"].order < value.order]
        if reader is not None:
            read = self.seen[reader, "input"].itself
            earlier.sort(key=lambda p: self.seen[p, "output"].itself is not read)
        return next(iter(earlier), None)

    def _reading(self, path: str) -> list[str]:
        """Return the modules that are given the very tensor that one is given."""
        read = self.seen[path, "input"].itself
        inputs = [p for p, side in self.seen if side == "input" and p]
        return [p for p in inputs if self.seen[p, "input"].itself is read]

    def _only_normalises(self, norm: str) -> bool:
        """Return whether a norm has no gain, before which TransformerLens's name stands."""
        return not [*self.module.get_submodule(norm).parameters()]


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters())
