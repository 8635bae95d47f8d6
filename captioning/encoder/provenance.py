"""Which encoder made a feature, and building the same encoder again."""

from captioning.config import FeatureSpec, check_provenance
from captioning.encoder.encoder import ImageEncoder
from captioning.encoder.factory import build_encoder
from captioning.encoder.ten_crops import TenCropFeatures
from captioning.errors import UserError


def make_encoder(
    spec: FeatureSpec, weights: str | None = None, pretrained: bool = True
) -> ImageEncoder | TenCropFeatures:
    """The encoder that makes `spec` from photos, checked against the weights it was made with.

    Features of type avg and max come from ten crops of each photo. Raises UserError where a feature file does not say
    what made it, or where the weights at hand are other ones.
    """
    provenance = spec.provenance
    if not provenance or not provenance.get("extractor"):
        raise UserError(
            f"the model reads features from {spec.name}, which does not say what made them, so it cannot caption "
            "photos; caption a dataset that has such features (--dataset), or make them anew with extract_features.py"
        )
    check_provenance(provenance, spec.name)
    kind = provenance.get("feature_type", "plain")
    if kind not in ("plain", "avg", "max"):
        raise UserError(
            f"the model reads features of type {kind!r} from {spec.name}: only plain, avg and max are known"
        )
    # its own size and normalisation: extract_features.py can change them
    extractor = build_encoder(provenance["extractor"], weights, pretrained, transform=provenance.get("transform"))
    expected = provenance.get("weights_sha256")
    if pretrained and expected and expected != extractor.weights_sha256:
        raise UserError(
            f"the model was made with other weights of {provenance['extractor']} (sha256 {expected[:12]}..., here "
            f"{extractor.weights_sha256[:12]}...): give the file with --weights"
        )
    if kind == "plain":
        return extractor
    image_size = provenance.get("image_size") or round(extractor.transform["size"] * 256 / 224)
    return TenCropFeatures(extractor, kind, image_size)


def internal_spec(name: str, extractor: ImageEncoder) -> FeatureSpec:
    """The spec of an encoder that runs within the model."""
    provenance = {"extractor": name, "weights_sha256": extractor.weights_sha256, "transform": extractor.transform}
    return FeatureSpec(name, extractor.shape, False, {**provenance, "feature_type": "plain"})
