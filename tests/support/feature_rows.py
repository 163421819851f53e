"""Records of `features.parquet`, as far as a choice of features reads them."""


def row(feature, density=0.001, agreement=0.5, sharpness=4.0, tokens=None):
    return {
        "feature": feature,
        "density": density,
        "max_activation": 0.0 if density == 0 else 3.0,
        "logit_agreement": agreement,
        "logit_sharpness": sharpness,
        "top_logit_tokens": tokens or [f" word{chr(97 + feature)}{i}" for i in range(10)],
    }
