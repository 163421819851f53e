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
RENUMBERED = "renumbered"
"""The column of an atlas from which features were left out."""

FEATURES = TableSchema(
    "features.parquet",
    (
        Column("feature", "int32", "number of the feature in its dictionary, from 0"),
        Column(
            "original_feature",
            "int32",
            "number that the feature had before others were left out; only in an export with "
            "`drop_dead=true` that leaves some out",
            RENUMBERED,
        ),
        Column(
            "label",
            "string",
            "label that was made from the data; what people wrote is in `labels.csv`",
        ),
        Column("density", "double", "share of the text's tokens on which it is active, 0 to 1"),
        Column("n_active", "int64", "number of tokens on which it is active"),
        Column("max_activation", "float", "highest activation, in the dictionary's own unit"),
        Column(
            "mean_activation", "double", "mean activation over the tokens on which it is active"
        ),
        Column(
            "std_activation",
            "double",
            "standard deviation of the activation over the tokens on which it is active",
        ),
        Column(
            "histogram",
            "list<int64>",
            "activations in 50 equal bins of (0, maximum], counted; a bin holds its upper edge",
        ),
        Column(
            "positions",
            "list<int64>",
            "numbers of tokens on which it is active in ten equal parts of the context window",
        ),
        Column("n_documents", "int64", "number of documents in which it is active"),
        Column(
            "top_document_share",
            "float",
            "share of these tokens that are in the document with most of them, 0 to 1",
        ),
        Column(
            "top_token_ids", "list<int32>", "ids of the ten tokens on which it is active most"
        ),
        Column("top_tokens", "list<string>", "texts of these tokens", beside="top_token_ids"),
        Column(
            "top_token_counts",
            "list<int64>",
            "how often it is active on each of these tokens",
            beside="top_token_ids",
        ),
        Column(
            "top_token_rates",
            "list<float>",
            "that number as a share of all occurrences of the token, 0 to 1",
            beside="top_token_ids",
        ),
        Column("decoder_norm", "float", "norm of its row of `W_dec`", from_directions=True),
        Column("encoder_norm", "float", "norm of its column of `W_enc`", from_directions=True),
        Column(
            "neighbours",
            "list<int32>",
            "the ten features with the nearest decoder directions",
            names_features=True,
            from_directions=True,
        ),
        Column(
            "neighbour_cosines",
            "list<float>",
            "cosines of these directions with its own",
            beside="neighbours",
            from_directions=True,
        ),
        Column(
            "correlated",
            "list<int32>",
            "the ten features, of **all** others, whose activations have the highest Pearson "
            "correlation with its own",
            names_features=True,
        ),
        Column(
            "correlations",
            "list<float>",
            "these correlations, over all tokens of the text, silent ones included",
            beside="correlated",
        ),
        Column(
            "coactive",
            "list<int32>",
            "the ten features with the highest share of common tokens, `coactive_jaccard`",
            names_features=True,
        ),
        Column(
            "coactive_counts",
            "list<int64>",
            "number of tokens `n_ij` on which both are active",
            beside="coactive",
        ),
        Column(
            "coactive_jaccard",
            "list<float>",
            "`n_ij / (n_i + n_j − n_ij)`, 0 to 1",
            beside="coactive",
        ),
        Column(
            "top_logit_tokens",
            "list<string>",
            "texts of the tokens that the decoder direction pushes up most, through the final "
            "norm's gain and the unembedding",
            LOGITS,
        ),
        Column(
            "top_logit_ids",
            "list<int32>",
            "ids of these tokens",
            LOGIT_IDS,
            beside="top_logit_tokens",
        ),
        Column(
            "top_logits",
            "list<float>",
            "what the decoder direction adds to their logits, before the final norm's scale",
            LOGITS,
            beside="top_logit_tokens",
        ),
        Column(
            "bottom_logit_tokens",
            "list<string>",
            "texts of the tokens that it pushes down most",
            LOGITS,
        ),
        Column(
            "bottom_logit_ids",
            "list<int32>",
            "ids of these tokens",
            LOGIT_IDS,
            beside="bottom_logit_tokens",
        ),
        Column(
            "bottom_logits",
            "list<float>",
            "what the decoder direction adds to their logits, before the final norm's scale",
            LOGITS,
            beside="bottom_logit_tokens",
        ),
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
            "map_x",
            "float",
            "place on the map from left to right, 0 to 1: UMAP of the exact nearest neighbours "
            "by cosine, from a start by PCA",
            from_directions=True,
        ),
        Column(
            "map_y",
            "float",
            "place on the map from top to bottom, 0 to 1",
            from_directions=True,
        ),
    ),
)

CONTEXTS = TableSchema(
    "contexts.parquet",
    (
        Column("feature", "int32", "number of the feature that the context is of"),
        Column(
            "original_feature",
            "int32",
            "number that the feature had before others were left out; only in an export with "
            "`drop_dead=true` that leaves some out",
            RENUMBERED,
        ),
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
        Column("tokens", "list<string>", "texts of these tokens", beside="token_ids"),
        Column(
            "activations",
            "list<float>",
            "activation of the feature at each of these tokens",
            beside="token_ids",
        ),
    ),
)
