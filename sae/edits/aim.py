"""What one record of an edit means in one model: everything that is refused is refused here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.base import UNKNOWN, UserError, require
from sae.dictionary import Dictionary
from sae.edits.codes import Amount, Gate, Reader
from sae.edits.library import Library, vector_of
from sae.edits.positions import EVERYWHERE, Span, Spans
from sae.edits.record import EVERY_WRITER, EditRecord, WhereRecord
from sae.edits.units import Scale
from sae.models import ModelRecord, Site, find_site, list_sites, locate
from sae.models.hooks import measured
from sae.models.unembed import unembedding

_HEADS = "attn.hook_z"
_PARTS = ("hook_attn_out", "hook_mlp_out")


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that edits are planned for, with or without its weights."""

    module: nn.Module
    """The model, or its skeleton on the meta device."""
    record: ModelRecord | None
    """Which model it is, if that is known."""
    n_begin: int = 1
    """Tokens that it has before every text."""
    token_ids: Any = None
    """Returns the ids of a text, `LanguageModel.text_ids`."""

    @property
    def has_weights(self) -> bool:
        """Whether it can be computed with."""
        return not next(self.module.parameters()).is_meta

    @property
    def device(self) -> torch.device:
        """Where edits are computed."""
        return (
            next(self.module.parameters()).device if self.has_weights else torch.device("cpu")
        )


@dataclass(frozen=True, slots=True)
class Aim:
    """One record with what was found out about it."""

    record: EditRecord
    sites: Sequence[Site]
    """Sites at which activations change: one, except for `every_writer`."""
    positions: Spans
    dictionary: Dictionary | None
    scales: Sequence[Scale]
    """What sizes are worth along each direction that is named; none of a head, nor of a token
    as long as there are no weights."""
    amount: Amount | None
    """Raw, for each sequence or all, and for each direction; None where there are no scales."""
    gate: Gate | None

    @property
    def site(self) -> Site:
        """The place where activations change, or the first of them."""
        return self.sites[0]

    @property
    def own_gate(self) -> int | None:
        """The feature that is the gate, where it is one of the dictionary that is edited."""
        when = self.record.when
        own = when is not None and when.dictionary in (None, self.record.dictionary)
        return when.feature if own and when is not None else None

    @property
    def sizes(self) -> list[dict[str, float | str]]:
        """Each amount in every unit, sequence after sequence; none where they have no unit.

        Where a unit is not known there stands why.
        """
        if self.amount is None or self.record.mode.by != "size":
            return []
        return [
            scale.sizes(float(raw))
            for row in self.amount
            for scale, raw in zip(self.scales, row, strict=True)
        ]

    @property
    def in_raw(self) -> list[EditRecord]:
        """The same edit with its amounts in raw units: one record, or one for each feature.

        Raises:
            UserError: for a token's direction, whose units the model's weights would tell.
        """
        if self.record.unit == "raw":
            return [self.record]
        if self.amount is None:
            raise UserError(
                f"unit={self.record.unit} of token {self.record.token!r} cannot be "
                "converted to raw without the weights of the model; give the amount in raw"
            )
        each = [replace(self.record, unit="raw", by=_plain(by)) for by in self.amount.T]
        if len(each) == 1:
            return each
        features = zip(each, self.record.chosen, strict=True)
        return [replace(one, features=None, feature=feature) for one, feature in features]

    @property
    def reads_codes(self) -> bool:
        """Whether activations have to be encoded to make the edit."""
        return self.dictionary is not None and self.record.mode.reads in ("code", "either")


class Aimer:
    """Finds out what records mean in one model."""

    def __init__(self, subject: Subject, library: Library) -> None:
        self.subject, self.library, self.device = subject, library, subject.device
        self.on_device: Callable[[str], Dictionary] = lru_cache(self._moved)

    def aim(self, record: EditRecord, sequence: tuple[int, int] | None = None) -> Aim:
        """Return what a record means for all sequences, or for one of so many in a batch.

        Raises:
            UserError: if it cannot be done in this model.
        """
        dictionary = None if record.dictionary is None else self._dictionary(record)
        if record.at == EVERY_WRITER:
            sites = self._writers()
        else:
            sites = [self._site(record, dictionary)]
        scales = self._scales(record, dictionary, sites[0])
        if record.mode.least_change:
            for scale in scales:
                rows = scale.find_rows()
                require(
                    not isinstance(rows, str),
                    f"do={record.do} needs the second moments of activations: {rows}",
                )
        return Aim(
            record,
            sites,
            _spans(record.where, self.subject.n_begin, sequence),
            dictionary,
            scales,
            _amount(record, scales).to(self.device)
            if scales or record.head is not None
            else None,
            None if record.when is None else self._gate(record),
        )

    def heads(self, site: Site) -> tuple[int, int]:
        """Return the number of heads at a site, and the width of what each gives."""
        config: Any = self.subject.module.config
        n = int(config.get_text_config().num_attention_heads)
        return n, self._width(site) // n

    def _dictionary(self, record: EditRecord) -> Dictionary:
        found = self.library.named(record).dictionary
        if self.subject.record is not None:
            self.subject.record.check_dictionary(str(record.dictionary), found.record.model)
        for feature in record.chosen:
            _check_feature(feature, str(record.dictionary), found)
        return self.on_device(str(record.dictionary))

    def _moved(self, name: str) -> Dictionary:
        return self.library.dictionary(name).dictionary.to(self.device)

    def _site(self, record: EditRecord, dictionary: Dictionary | None) -> Site:
        module = self.subject.module
        if dictionary is None:
            site = _found(module, record)
            require(
                (record.head is None) or site.hook_name.endswith(_HEADS),
                f"head={record.head} is at {record.at}; heads are only separate at hooks "
                f"{_HEADS}",
            )
            return site
        own = dictionary.writes[0].place
        if own == UNKNOWN:
            require(
                record.at is not None,
                f"{record.dictionary} does not say which hook it reads; give a hook with at:",
            )
            return _found(module, record)
        site = locate(module, own)
        if record.at is not None and record.at != site.hook_name:
            at = _found(module, record)
            require(
                at == site,
                f"at={record.at}, but {record.dictionary} is at {site.hook_name}; leave it out",
            )
        return site

    def _writers(self) -> list[Site]:
        """Return where the stream begins, and all that blocks add to it."""
        named = {site.hook_name: site for site in list_sites(self.subject.module)}
        blocks = [name for name in named if name.endswith(".hook_resid_pre")]
        parts = [f"blocks.{i}.{part}" for i in range(len(blocks)) for part in _PARTS]
        missing = [name for name in parts if name not in named]
        require(
            bool(blocks) and not missing,
            f"at={EVERY_WRITER}: this model has no {missing[0] if missing else _PARTS[0]}, "
            "so it is not known which parts write into its stream",
        )
        return [named["blocks.0.hook_resid_pre"], *(named[name] for name in parts)]

    def _width(self, site: Site) -> int:
        return site.width or measured(self.subject.module, [site])[0].width

    def _scales(
        self, record: EditRecord, dictionary: Dictionary | None, site: Site
    ) -> list[Scale]:
        """Return what sizes are worth along each direction that a record names."""
        if record.target == "head":
            self._check_head(record, site)
            return []
        # Atlas and cache are opened only for a unit that they are needed for.
        rows = partial(self.library.rows, record, site.hook_name)
        if dictionary is None:
            vector = self._direction(record, site)
            name = f"token {record.token!r}" if record.token else "that direction"
            return [] if vector is None else [Scale(name, vector, rows)]
        named, scales = self.library.named(record), []
        for feature in record.chosen:
            vector = dictionary.W_dec[feature].float()
            what = f"feature {feature} of {record.dictionary}"
            if record.mode.reads == "projection":
                length = torch.linalg.vector_norm(vector)
                require(bool(length > 0), f"{what} has no direction: its decoder row is zero")
                scales.append(Scale(what, vector / length, rows))
            else:
                scales.append(Scale(what, vector, rows, named, feature))
        return scales

    def _direction(self, record: EditRecord, site: Site) -> Float[Tensor, " d"] | None:
        """Return a unit vector; None of a token where there are no weights to tell it from."""
        width = self._width(site)
        if record.token is None:
            vector = vector_of(record).to(self.device)
            require(
                width in (0, len(vector)),
                f"direction has {len(vector)} numbers, and activations at {site.hook_name} "
                f"have {width}",
            )
        else:
            token_ids = self.subject.token_ids
            require(
                token_ids is not None, f"token={record.token!r} needs the model's tokenizer"
            )
            ids = token_ids(record.token)
            require(
                len(ids) == 1,
                f"token={record.token!r} consists of {len(ids)} tokens in this model; give "
                "a text of one token, with the space that it may begin with",
            )
            if not self.subject.has_weights:
                return None
            vector = unembedding(self.subject.module, site)[:, int(ids[0])]
        unit: Tensor = vector / torch.linalg.vector_norm(vector)
        return unit

    def _check_head(self, record: EditRecord, site: Site) -> None:
        n, d = self.heads(site)
        require(
            int(record.head or 0) < n and d > 0,
            f"head={record.head} is out of range; {site.hook_name} has heads 0 to {n - 1}",
        )

    def _gate(self, record: EditRecord) -> Gate:
        when = record.when
        assert when is not None
        name = when.dictionary or str(record.dictionary)
        dictionary = self.library.dictionary(name).dictionary
        if self.subject.record is not None:
            self.subject.record.check_dictionary(name, dictionary.record.model)
        _check_feature(when.feature, name, dictionary)
        place = dictionary.reads[0].place
        require(
            place != UNKNOWN,
            f"{name} does not say which hook it reads, so its features cannot be a gate",
        )
        site = locate(self.subject.module, place)
        reader = Reader.of(self.on_device(name), [when.feature])
        return Gate(site, reader, when.above, when.below)


def _found(module: nn.Module, record: EditRecord) -> Site:
    """Return the site of a hook, which an edit says as `at`."""
    try:
        return find_site(module, str(record.at))
    except UserError as error:
        raise UserError(str(error).replace("hook_name=", "at=", 1)) from error


def _check_feature(feature: int, name: str, dictionary: Dictionary) -> None:
    require(
        feature < dictionary.d_sae,
        f"feature {feature} is out of range; {name} has 0 to {dictionary.d_sae - 1}",
    )


def _spans(where: WhereRecord, n_begin: int, sequence: tuple[int, int] | None) -> Spans:
    require(
        sequence is None or where.sequences is None,
        "where.sequences is meant for a whole batch, but this edit is for a single "
        "sequence; say where with prompt, generated and except",
    )
    bos: Span = (0, max(1, n_begin))
    but = tuple(bos if isinstance(span, str) else span for span in where.but)
    each = where.sequences
    if sequence is not None:
        own, n = sequence
        each = tuple(EVERYWHERE if i == own else () for i in range(n))
    return Spans(where.prompt, where.generated, but, each)


def _plain(by: Tensor) -> float | tuple[float, ...]:
    """Return one number, or one for each sequence, as a file has them."""
    numbers = tuple(by.tolist())
    return numbers[0] if len(numbers) == 1 else numbers


def _amount(record: EditRecord, scales: Sequence[Scale]) -> Amount:
    """Return raw amounts, (sequence, direction), of one sequence if they are for all."""
    by = record.mode.default if record.by is None else record.by
    if by is None:
        by = 0.0
    given = by if isinstance(by, Tensor) else torch.tensor(by)
    given = given.float().reshape(-1, 1)
    if record.mode.by != "size":
        return given
    worth = torch.tensor([scale.raw(1.0, record.unit) for scale in scales])
    return given * worth.to(given)
