"""encoder.py: features against torchvision's and timm's own networks, freezing, hashing, weights that are wrong."""

import pickle

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

from captioning.encoder import encoder
from captioning.encoder.factory import build_encoder
from captioning.encoder.transforms import ImageTransform
from captioning.errors import UserError
from captioning.fast import convolutions

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A resnet18 of torchvision whose batch norms have statistics of their own, and the file of its weights."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(model.state_dict(), path)
    return model.eval(), path


def close(ours, reference, tolerance=1e-4):
    return (ours - reference).abs().max() <= tolerance * reference.abs().max()


def test_features_of_a_torchvision_network(resnet, pixels):
    model, path = resnet
    x = v2.functional.normalize(pixels / 255, MEAN, STD)
    body = torch.nn.Sequential(*list(model.children())[:-2])
    with torch.no_grad():
        expected_map = body(x)
    conv = build_encoder("resnet18-conv", weights=path)
    assert (conv.dim, conv.grid, conv.spatial) == (512, (7, 7), True)
    assert conv.transform == {"size": 224, "interpolation": "bilinear", "mean": list(MEAN), "std": list(STD)}
    assert close(conv(pixels), expected_map)
    assert conv(pixels).permute(0, 2, 3, 1).is_contiguous()
    pooled = build_encoder("resnet18", weights=path)
    assert (pooled.dim, pooled.grid, pooled.spatial) == (512, None, False)
    assert close(pooled(pixels), expected_map.mean((2, 3)))
    assert close(pooled(pixels.float()), expected_map.mean((2, 3)))
    assert pooled.weights_sha256 == conv.weights_sha256


def test_folding_changes_the_network_but_not_its_output(resnet, pixels, fast):
    extractor = build_encoder("resnet18-conv", weights=resnet[1])
    frozen = extractor(pixels)
    folded = extractor.fast.network
    assert folded is not extractor.network
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    extractor.unfreeze()
    assert close(frozen, extractor(pixels).detach())
    assert {key.split(".")[0] for key in extractor.state_dict()} == {"network"}


def test_a_convolution_read_twice_is_not_folded():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
            self.norm.running_var.fill_(3.0)

        def forward(self, x):
            x = self.conv(x)
            return self.norm(x) + x

    network = Twice().eval()
    assert convolutions.fold_batch_norms(network, torch.randn(1, 3, 8, 8)) is network


@pytest.mark.parametrize(
    "name, dim, grid",
    [
        ("alexnet", 4096, None),
        ("alexnet-conv", 256, (6, 6)),
        ("densenet201", 1920, None),
        ("squeezenet1_1", 512, None),
        ("squeezenet1_1-conv", 512, (13, 13)),
        ("resnet152", 2048, None),
        ("regnet_y_400mf-conv", 440, (7, 7)),
        ("swin_t-conv", 768, (7, 7)),
        ("timm:resnet10t", 512, None),
        ("timm:vit_tiny_patch16_224-conv", 192, (14, 14)),
        ("timm:swin_tiny_patch4_window7_224-conv", 768, (7, 7)),
    ],
)
def test_shapes_by_name(name, dim, grid, pixels):
    extractor = build_encoder(name, pretrained=False)
    assert (extractor.dim, extractor.grid) == (dim, grid)
    if name in ("resnet152", "densenet201"):  # sizes are known without a run
        return
    size = extractor.transform["size"]
    features = extractor(torch.nn.functional.interpolate(pixels[:2].float(), size=(size, size)))
    assert features.shape == (2, dim, *(grid or ()))
    assert features.isfinite().all() and features.std() > 0


def test_vit_map_is_its_patch_tokens(pixels):
    torch.manual_seed(0)
    extractor = build_encoder("vit_b_32-conv", pretrained=False)
    model = torchvision.models.vit_b_32()
    model.load_state_dict({**model.state_dict(), **extractor.network.state_dict()})
    x = v2.functional.normalize(pixels[:1] / 255, MEAN, STD)
    with torch.no_grad():
        tokens = model._process_input(x)
        tokens = model.eval().encoder(torch.cat([model.class_token, tokens], 1))[:, 1:]
    assert close(extractor(pixels[:1]).flatten(2).transpose(1, 2), tokens)


def test_inception_normalises_as_its_weights_want(pixels):
    ours = build_encoder("inceptionv3", pretrained=False)
    model = torchvision.models.inception_v3(weights=None, aux_logits=False, transform_input=True, init_weights=False)
    model.load_state_dict({**model.state_dict(), **ours.network.state_dict()})
    model.fc = torch.nn.Identity()
    big = torch.nn.functional.interpolate(pixels[:1].float(), size=(299, 299))
    with torch.no_grad():
        expected = model.eval()(v2.functional.normalize(big / 255, MEAN, STD))
    assert close(ours(big), expected)


def test_chunks_change_nothing(resnet, pixels, monkeypatch):
    extractor = build_encoder("resnet18", weights=resnet[1])
    whole = extractor(pixels)
    monkeypatch.setattr(encoder, "CHUNK", 2)
    assert close(extractor(pixels), whole, 1e-5)


def test_frozen_stays_frozen_and_unfreeze_counts_blocks(pixels):
    extractor = build_encoder("resnet18", pretrained=False).train()
    assert not extractor.network.training and extractor.training
    assert not any(p.requires_grad for p in extractor.parameters())
    assert not extractor(pixels[:1]).requires_grad
    assert extractor.blocks == ["conv1", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1))]
    count = extractor.unfreeze(last=1)
    trained = [name for name, p in extractor.network.named_parameters() if p.requires_grad]
    assert all(name.startswith("layer4.1.") for name in trained)
    assert count == 2 * 512 * 512 * 9 + 4 * 512
    extractor.train()
    assert not any(m.training for m in extractor.network.modules())
    before = extractor.weights_sha256
    extractor(pixels[:1]).sum().backward()
    torch.optim.SGD([p for p in extractor.parameters() if p.requires_grad], lr=1.0).step()
    assert extractor.weights_sha256 != before
    changed = extractor(pixels[:1]).detach()
    extractor.freeze()
    assert close(extractor(pixels[:1]), changed)
    assert extractor.unfreeze() == sum(p.numel() for p in extractor.network.parameters())
    with pytest.raises(UserError, match="resnet18 has 9 blocks: cannot fine-tune the last 10"):
        extractor.unfreeze(last=10)


def test_fine_tuning_behind_a_folded_trunk(resnet, pixels, fast, plainly):
    """Frozen parts are folded, trained ones are the network's own: outputs, gradients, and a step that is seen."""
    extractor = build_encoder("resnet18-conv", weights=resnet[1])
    extractor.unfreeze(last=1)
    features = extractor(pixels)
    features.square().mean().backward()
    folded, network = extractor.fast.network, extractor.network
    norms = [name for name, module in folded.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert folded is not network and norms == ["layer4.1.bn1", "layer4.1.bn2"]
    last = network.get_submodule("layer4.1.conv2")
    assert folded.get_submodule("layer4.1.conv2") is last
    assert [p for p in folded.parameters() if p.requires_grad] == [p for p in network.parameters() if p.requires_grad]
    gradient, last.weight.grad = last.weight.grad, None
    plain = plainly(extractor, pixels)
    plain.square().mean().backward()
    assert close(features, plain) and close(gradient, last.weight.grad, 1e-3)
    with torch.no_grad():
        last.weight.mul_(2)
        assert close(extractor(pixels), plainly(extractor, pixels))
    assert not extractor(pixels).detach().equal(features.detach())


def test_loading_weights_later_makes_the_folded_copy_anew(resnet, pixels):
    whole = build_encoder("resnet18", weights=resnet[1])
    other = build_encoder("resnet18", pretrained=False)
    assert not close(other(pixels), whole(pixels))
    other.load_state_dict(whole.state_dict())
    assert close(other(pixels), whole(pixels), 1e-6)
    assert other.weights_sha256 == whole.weights_sha256
    again = pickle.loads(pickle.dumps(whole))
    assert close(again(pixels), whole(pixels), 1e-6)


def test_transform_can_be_changed():
    extractor = build_encoder("resnet18-conv", pretrained=False, transform={"size": 256, "mean": [0, 0, 0]})
    assert extractor.grid == (8, 8) and extractor.mean.flatten().tolist() == [0, 0, 0]
    assert build_encoder("vit_b_32-conv", pretrained=False, transform={"size": 256}).grid == (8, 8)
    assert build_encoder("timm:vit_tiny_patch16_224-conv", pretrained=False, transform={"size": 256}).grid == (16, 16)
    with pytest.raises(UserError, match="alexnet cannot work with {'size': 20}"):
        build_encoder("alexnet", pretrained=False, transform={"size": 20})


def test_weights_that_cannot_be_had_or_do_not_fit(resnet, tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"resnet152 \(no network\): put resnet152-394f9c45.pth .* into .*checkpoints"):
        build_encoder("resnet152")
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"weights of timm:resnet10t \(no network\): .*--weights FILE"):
        build_encoder("timm:resnet10t")
    monkeypatch.undo()
    with pytest.raises(UserError, match="no such file: nowhere.pth"):
        build_encoder("resnet18", weights="nowhere.pth")
    with pytest.raises(UserError, match=r"do not fit this encoder: \d+ tensors, first: no layer1.0.conv3.weight"):
        build_encoder("resnet50", weights=resnet[1])
    (tmp_path / "damaged.pth").write_bytes(resnet[1].read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot read weights from .*damaged.pth"):
        build_encoder("resnet18", weights=tmp_path / "damaged.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="list.pth holds no state dict"):
        build_encoder("resnet18", weights=tmp_path / "list.pth")


def test_a_wrapped_state_dict(resnet, tmp_path):
    torch.save({"epoch": 3, "state_dict": torch.load(resnet[1], weights_only=True)}, tmp_path / "wrapped.pth")
    whole = build_encoder("resnet18", weights=resnet[1])
    assert build_encoder("resnet18", weights=tmp_path / "wrapped.pth").weights_sha256 == whole.weights_sha256


def test_unknown_names():
    with pytest.raises(UserError, match="unknown encoder 'resnet153'.*near: resnet152"):
        build_encoder("resnet153")
    with pytest.raises(UserError, match="timm has no model 'resnet1888'"):
        build_encoder("timm:resnet1888")


def test_image_transform():
    noise = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    whole = ImageTransform(28, "bilinear")(image)
    assert whole.shape == (3, 28, 28) and whole.dtype == torch.uint8
    expected = v2.functional.resize(torch.from_numpy(noise).permute(2, 0, 1), [28, 28], antialias=True)
    assert (whole.int() - expected.int()).abs().max() <= 1
    with pytest.raises(UserError, match="unknown interpolation 'box'"):
        ImageTransform(28, "box")


def test_training_transform_is_a_function_of_the_seed():
    image = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    transform = pickle.loads(pickle.dumps(ImageTransform(28, "bicubic", train=True)))
    crops = {seed: transform(image, seed) for seed in range(20)}
    assert all(torch.equal(crops[seed], transform(image, seed)) for seed in crops)
    assert len({crop.numpy().tobytes() for crop in crops.values()}) > 10
    whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # 32 = 28 * 256 / 224: cropped, not resized
    windows = {whole[:, y : y + 28, x : x + 28].numpy().tobytes() for y in range(5) for x in range(5)}
    kinds = [tuple(view.numpy().tobytes() in windows for view in (crop, crop.flip(2))) for crop in crops.values()]
    assert set(kinds) == {(True, False), (False, True)}  # as it is, or mirrored
