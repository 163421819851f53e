"""Every column of an atlas's two tables: its name, its type and what it means.

Both tables are written and read through `FEATURES` and `CONTEXTS`, so that what is on disk is
what stands here; `docs/atlas.md` shows the same columns and a test keeps it so.
"""

from sae.atlas.table import Column, TableSchema

N_BANDS = 5
"""Equal parts of (0, highest activation] that contexts are drawn from."""
N_LISTED = 10
"""Features to list that one is correlated with, fires with, or points along."""
GROUPS = ("top", "band", "silent")
"""Kinds of contexts, in the order of `contexts.parquet`."""
LOGITS = "logits"
"""Columns of features whose dictionary writes into the residual stream."""
LOGIT_IDS = "logit ids"
"""More of the same, which an atlas that was imported does not have."""
DIALS = "dials"
"""Columns of features that were scored by what they do to the model's output."""
STABILITY = "stability"
"""The column of what other seeds of the training find again."""
_ORIGINAL = Column(
    "original_feature",
    "int32",
    "number before others were left out, by `drop_dead=true`; only in such an export",
    "renumbered",
)


def _beside_logit_tokens(name: str) -> tuple[Column, Column]:
    tokens = f"{name}_logit_tokens"
    meaning = f"what it adds to logits of `{tokens}`, before the final norm's scale"
    return (
        Column(f"{name}_logit_ids", "list<int32>", f"ids of `{tokens}`", LOGIT_IDS, tokens),
        Column(f"{name}_logits", "list<float>", meaning, LOGITS, tokens),
    )


def _with_nulls(name: str, meaning: str) -> tuple[Column, ...]:
    """Return a column measured at the stated dose, and what chance gives in its place."""
    found = [Column(name, "float", f"at the stated dose: {meaning}", DIALS)]
    for kind, of in (("direction", "random directions"), ("feature", "random features")):
        for key, told in (
            ("mean", f"mean of `{name}` over {of} of equal norm, for the same tokens"),
            ("z", f"standard deviations of those that `{name}` lies above their mean"),
            ("p", f"share of {of}, itself counted, whose `{name}` is at least as high"),
        ):
            found.append(Column(f"{name}_{kind}_{key}", "float", told, DIALS))
    return tuple(found)


FEATURES = TableSchema(
    "features.parquet",
    Column("feature", "int32", "number of the feature in its dictionary, from 0"),
    _ORIGINAL,
    Column("label", "string", "label made from the data; what people wrote is in `labels.csv`"),
    Column("density", "double", "share of the text's tokens on which it is active, 0 to 1"),
    Column("n_active", "int64", "number of tokens on which it is active"),
    Column("max_activation", "float", "highest activation, in the dictionary's own unit"),
    Column("mean_activation", "double", "mean activation over the tokens where it is active"),
    Column(
        "std_activation", "double", "standard deviation of its activation where it is active"
    ),
    Column(
        "histogram",
        "list<int64>",
        "activations counted in 50 equal bins of (0, maximum], upper edges inside",
    ),
    Column(
        "positions",
        "list<int64>",
        "tokens on which it is active, counted in ten equal parts of the context",
    ),
    Column("n_documents", "int64", "number of documents in which it is active"),
    Column(
        "top_document_share",
        "float",
        "share of `n_active` in the document that has most of it, 0 to 1",
    ),
    Column("top_token_ids", "list<int32>", "ids of the ten tokens on which it is active most"),
    Column(
        "top_tokens",
        "list<string>",
        "texts of `top_token_ids` by themselves",
        beside="top_token_ids",
    ),
    Column(
        "top_token_counts",
        "list<int64>",
        "how often it is active on each of `top_token_ids`",
        beside="top_token_ids",
    ),
    Column(
        "top_token_rates",
        "list<float>",
        "share of each token's occurrences where it is active, 0 to 1",
        beside="top_token_ids",
    ),
    Column("decoder_norm", "float", "norm of its row of `W_dec`"),
    Column("encoder_norm", "float", "norm of its column of `W_enc`"),
    Column(
        "neighbours",
        "list<int32>",
        "the ten features with the nearest decoder directions",
        names_features=True,
    ),
    Column(
        "neighbour_cosines",
        "list<float>",
        "cosines with the directions of `neighbours`",
        beside="neighbours",
    ),
    Column(
        "correlated",
        "list<int32>",
        "the ten of **all** other features that it is most correlated with",
        names_features=True,
    ),
    Column(
        "correlations",
        "list<float>",
        "Pearson correlations with `correlated` over all tokens, silent ones too",
        beside="correlated",
    ),
    Column(
        "coactive",
        "list<int32>",
        "the ten features with the highest `coactive_jaccard`",
        names_features=True,
    ),
    Column(
        "coactive_counts",
        "list<int64>",
        "tokens `n_ij` on which it is active together with each of `coactive`",
        beside="coactive",
    ),
    Column(
        "coactive_jaccard",
        "list<float>",
        "share of common tokens, `n_ij / (n_i + n_j − n_ij)`, 0 to 1",
        beside="coactive",
    ),
    Column(
        "top_logit_tokens",
        "list<string>",
        "texts of the tokens that the decoder direction pushes up most, through the final "
        "norm's gain and the unembedding",
        LOGITS,
    ),
    *_beside_logit_tokens("top"),
    Column(
        "bottom_logit_tokens",
        "list<string>",
        "texts of the tokens that it pushes down most",
        LOGITS,
    ),
    *_beside_logit_tokens("bottom"),
    Column(
        "logit_sharpness",
        "float",
        "standard deviations between the mean of the top logits and the mean of all logits",
        LOGIT_IDS,
    ),
    Column(
        "logit_agreement",
        "double",
        "share of its top contexts whose peak, or the token after it, is among its top "
        "logits, 0 to 1",
        LOGITS,
    ),
    Column(
        "dial_verdict",
        "string",
        "`dial`, `weak` or `none`, see below; empty where it was not scored, and then all that "
        "follows up to the map is not a number",
        DIALS,
    ),
    Column(
        "dial_score",
        "float",
        "change of the log-probability that the next token is one of `top_logit_tokens`, at "
        "`dial_strength`, nats",
        DIALS,
    ),
    Column(
        "dial_score_null",
        "float",
        "highest such change for the same tokens among random directions and random features, "
        "each at its own recommended dose",
        DIALS,
    ),
    Column(
        "dial_score_p",
        "float",
        "share of those, itself counted, whose change is at least as high",
        DIALS,
    ),
    Column(
        "dial_strength",
        "float",
        "recommended dose, in multiples of `max_activation`: what costs about the stated KL on "
        "neutral text",
        DIALS,
    ),
    Column(
        "dial_rise",
        "float",
        "rise of `output_score` over the unsteered model's, at `dial_strength`",
        DIALS,
    ),
    Column(
        "dial_rise_null",
        "float",
        "highest such rise among random directions and random features, each at its own "
        "recommended dose",
        DIALS,
    ),
    Column(
        "dial_kl",
        "float",
        "cost of `dial_strength`: KL from the unsteered model's next-token probabilities to "
        "the steered one's on neutral text, nats a token",
        DIALS,
    ),
    Column(
        "dial_delta_ce",
        "float",
        "cost of `dial_strength` as the rise of cross-entropy on the same text, nats a token",
        DIALS,
    ),
    Column(
        "input_score",
        "float",
        "share of its top contexts whose peak is among `top_logit_tokens`, 0 to 1",
        DIALS,
    ),
    Column(
        "input_score_feature_mean",
        "float",
        "mean of that share where the promoted tokens are those of random features",
        DIALS,
    ),
    Column(
        "stated_strength",
        "float",
        "the stated dose, of one norm for all features, in multiples of `max_activation`",
        DIALS,
    ),
    *_with_nulls(
        "output_score",
        "probability of the likeliest of `top_logit_tokens` times one minus its rank over the "
        "vocabulary's size, 0 to 1",
    ),
    *_with_nulls(
        "token_shift",
        "change of the log-probability that the next token is one of `top_logit_tokens`, nats",
    ),
    *_with_nulls(
        "confidence_change", "change of the highest probability of a next token, −1 to 1"
    ),
    *_with_nulls("delta_ce", "rise of cross-entropy on neutral text, nats a token"),
    *_with_nulls(
        "kl", "KL from unsteered to steered next-token probabilities there, nats a token"
    ),
    Column(
        "map_x",
        "float",
        "place on the map from left to right, 0 to 1: UMAP of the exact nearest neighbours "
        "by cosine, from a start by PCA",
    ),
    Column("map_y", "float", "place on the map from top to bottom, 0 to 1"),
    Column(
        "stability",
        "float",
        "cosine of its decoder direction and that of its match in a dictionary of the same "
        "training with another seed, without sign, 0 to 1, the mean over such dictionaries; "
        "null where it fires on none of the held-out rows, and everywhere if the run has no "
        "other seed",
        STABILITY,
    ),
)

CONTEXTS = TableSchema(
    "contexts.parquet",
    Column("feature", "int32", "number of the feature that the context is of"),
    _ORIGINAL,
    Column("group", "string", "`top`, `band` or `silent`, see below"),
    Column(
        "band",
        "int8",
        "of the group `band`: which fifth of (0, maximum] the activation is in, from 0 for "
        "weak to 4 for strong; −1 in the other groups",
    ),
    Column(
        "rank",
        "int32",
        "place in its group and band, from 0: the strongest first, silent ones as drawn",
    ),
    Column("sequence", "int64", "number of its sequence in the cache; −1 if not known"),
    Column("position", "int32", "position in the sequence of the token it was chosen for"),
    Column("start", "int32", "position in the sequence of the first token that is shown"),
    Column("activation", "float", "activation at `position`"),
    Column("token_ids", "list<int32>", "ids of the tokens that are shown"),
    Column(
        "tokens",
        "list<string>",
        "what each of these tokens adds to the text; a character of several tokens is that of "
        "the last of them",
        beside="token_ids",
    ),
    Column(
        "activations",
        "list<float>",
        "activation of the feature at each of these tokens",
        beside="token_ids",
    ),
)
