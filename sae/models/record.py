"""`ModelRecord`: which model something was computed with, as it is kept beside the result."""

from dataclasses import dataclass

from sae.base import UNKNOWN, JsonObject, plain, require
from sae.models.packaged import EMBEDDED

# Fields that older records have not got.
_LATER = {"trust_remote_code": False, "random_weights": False}


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """Which model activations are of, and which weights it had then."""

    name: str
    """The name that it is loaded by: an embedded name, a folder or a Hub id."""
    hub_id: str
    """The name that others know it by."""
    weight_digest: str = UNKNOWN
    """Identifies the weights; "unknown" where nobody has seen them."""
    causal: bool = True
    """Whether it predicts a next token."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    dtype: str = "float32"
    """Precision that it was run in."""
    bos_token: str | None = None
    """Token that was asked for at the beginning of texts, if it is not the tokenizer's own."""
    begin: tuple[int, ...] | None = None
    """Ids of the tokens before every text; None where that was not kept."""
    end: tuple[int, ...] | None = None
    """Ids of the tokens after every text; None where that was not kept."""
    origin: str | None = None
    """What its weights were made of, where they are not those that the Hub has."""
    trust_remote_code: bool = False
    """Whether code that comes with the model was allowed to run."""
    random_weights: bool = False
    """Whether its weights were drawn at random in place of the trained ones, as a control."""
    loaded_by: str | None = None
    """Class of transformers that loads it, where that is neither of the usual two."""

    @property
    def class_name(self) -> str:
        """The class of transformers that loads it."""
        if self.loaded_by is not None:
            return self.loaded_by
        return "AutoModelForCausalLM" if self.causal else "AutoModel"

    @property
    def weights_known(self) -> bool:
        """Whether somebody has seen the weights, so that their digest is known."""
        return self.weight_digest != UNKNOWN

    def check_dictionary(self, name: str, of: "ModelRecord | None") -> None:
        """Refuse a dictionary of another model than this one, as far as it says of which.

        Args:
            name: of the dictionary.
            of: the model that it says it is of.

        Raises:
            UserError: if that has other weights, or another name where weights are not known.
        """
        if of is None:
            return
        if of.weights_known and self.weights_known and of.dtype == self.dtype:
            require(
                of.weight_digest == self.weight_digest,
                f"{name} is a dictionary of {of.hub_id} with weights {of.weight_digest}, and "
                f"this model has {self.weight_digest}",
            )
        else:
            same = {of.name, of.hub_id} & {self.name, self.hub_id}
            require(bool(same), f"{name} is a dictionary of {of.hub_id}, not of {self.hub_id}")

    def to_json(self) -> dict[str, object]:
        """Return what `from_json` reads."""
        found: dict[str, object] = plain(self)
        return found

    @classmethod
    def from_json(cls, found: JsonObject) -> "ModelRecord":
        """Read what `to_json` returned.

        Records from before encoders could be read are of causal models, and those of embedded
        models did not always say what their weights are made of.

        Raises:
            UserError: if a field is missing or of another type.
        """
        name = found.get("name", str)
        origin = EMBEDDED[name].origin if name in EMBEDDED else None
        return found.read(cls, hub_id=name, causal=True, origin=origin, **_LATER)
