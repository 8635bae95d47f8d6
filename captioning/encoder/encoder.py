"""The image encoder: a network that normalises its own pixels, frozen or with its last blocks training."""

import hashlib

import torch
from torch import Tensor, nn

from captioning.encoder.recomputing import recomputed
from captioning.errors import UserError
from captioning.fast import switch
from captioning.fast.convolutions import FastNetwork

CHUNK = 4  # images that a CPU encodes at a time: more at once run out of its cache and are slower


def block_names(model: nn.Module) -> list[str]:
    """Names of the parts of `model` with weight matrices, first to last; sequences of parts are opened."""
    names = []
    for name, module in model.named_children():
        if type(module) in (nn.Sequential, nn.ModuleList) or type(module).__name__ in ("Encoder", "Transformer"):
            names += [f"{name}.{inner}" for inner in block_names(module)]
        elif any(p.ndim > 1 for p in module.parameters()):
            names.append(name)
    return names


class ImageEncoder(nn.Module):
    """An encoder that normalises its pixels itself: (B,3,H,W) uint8 or float 0..255 -> (B,D) or (B,D,h,w) float32.

    `name`; `shape` (D,) or (D,h,w) of what it makes from one image, `dim` = D, `grid` = (h,w) or None, `spatial`;
    `transform`, the dict that ImageTransform() and the normalisation are made of; `weights_sha256`. It starts frozen:
    without gradients, in eval mode also after train(). Maps come in channels-last memory where the network allows, so
    that flattening them to (B,h*w,D) copies nothing.
    """

    def __init__(
        self, name: str, network: nn.Module, transform: dict, shape: tuple, order: list[str], blocks: list[str]
    ):
        super().__init__()
        self.name, self.transform = name, transform
        self.shape, self.dim, self.spatial, self.grid = shape, shape[0], len(shape) == 3, shape[1:] or None
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.frozen = True
        self.checkpoints_activations = False  # True: blocks that train are computed twice instead of being kept
        self.blocks = blocks  # names of the network's parts that unfreeze() counts, first to last
        self._order = order  # names in the state dict, in the order of the network's definition
        self.fast, self.fast_joint = FastNetwork(), FastNetwork()
        # another encoder that shares layers with this one, and the network of both, which is no part of this one
        self.joint: tuple[ImageEncoder, nn.Module] | None = None
        for key in ("mean", "std"):
            self.register_buffer(key, 255 * torch.tensor(transform[key]).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B,3,H,W) -> (B,D) or (B,D,h,w), float32."""
        return self._run(self.network, self.fast, pixels)[0]

    def together(self, joint: nn.Module, pixels: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the network `joint`, which has the layers of this one and reads the same pixels, float32."""
        return self._run(joint, self.fast_joint, pixels, "main.")

    def _run(self, network: nn.Module, fast: FastNetwork, pixels: Tensor, place: str = "") -> tuple[Tensor, ...]:
        """The outputs of `network`, in chunks of the batch; place: as `_output` takes it."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            count = -(-len(pixels) // CHUNK) if switch.enabled and pixels.device.type == "cpu" else 1
            chunks = pixels.tensor_split(max(count, 1))
            parts = []
            for images in map(self._normalise, chunks):
                output = self._output(fast.of(network, images), images, place)
                parts.append([one.float() for one in (output if isinstance(output, tuple) else (output,))])
            return tuple(several[0] if len(parts) == 1 else torch.cat(several) for several in zip(*parts))

    def _output(self, network: nn.Module, images: Tensor, place: str) -> Tensor | tuple[Tensor, ...]:
        """network(images); place: what the names of this encoder's blocks begin with in `network`."""
        if not (self.checkpoints_activations and torch.is_grad_enabled()):
            return network(images)
        return recomputed(network, [place + block for block in self.trained_blocks()], images)

    def _normalise(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.mean.dtype)  # channel by channel: three numbers at a time would be slow
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> "ImageEncoder":
        """The network stays in eval mode, frozen or not: batches are too small for new batch norm statistics."""
        super().train(mode)
        self.network.eval()
        return self

    def freeze(self) -> None:
        self.network.requires_grad_(False)
        self.frozen = True
        self.forget()

    def unfreeze(self, last: int | None = None) -> int:
        """Make the last `last` blocks (residual blocks, stages, layers; None = the whole network) trainable.

        Returns the number of weights that will train. Raises UserError where there are not that many blocks.
        """
        if last is not None and not 1 <= last <= len(self.blocks):
            raise UserError(f"{self.name} has {len(self.blocks)} blocks: cannot fine-tune the last {last}")
        self.freeze()
        for block in self.blocks[-last:] if last else [""]:
            self.network.get_submodule(block).requires_grad_(True)
        self.frozen = False
        return sum(p.numel() for p in self.network.parameters() if p.requires_grad)

    def trained_blocks(self) -> list[str]:
        """Names of the blocks with weights that train, first to last."""
        return [
            name for name in self.blocks if any(p.requires_grad for p in self.network.get_submodule(name).parameters())
        ]

    def depths(self) -> dict[nn.Parameter, int]:
        """Of each weight how many blocks stand between it and the output: 0 in the last block and behind it.

        What stands before the first block has as many as there are blocks.
        """
        found, ahead = {}, len(self.blocks)  # blocks that the definition of the network has not come to
        for name, parameter in self.network.named_parameters():
            inside = [n for n, block in enumerate(self.blocks) if name.startswith(f"{block}.")]
            ahead = min([ahead, *(len(self.blocks) - 1 - n for n in inside)])
            found[parameter] = ahead
        return found

    @property
    def weights_sha256(self) -> str:
        """SHA-256 over the tensors that the output depends on, in the order of the network's definition.

        Of each: its shape as text ("64,3,7,7;"), then its values as little-endian float32 in C order. Names, the last
        classifier layer and counters of batches do not enter, nor does folding, so that the same weights give the same
        hash from whatever file they came.
        """
        digest = hashlib.sha256()
        state = self.network.state_dict()
        for key in self._order:
            if not key.endswith("num_batches_tracked"):
                digest.update((",".join(map(str, state[key].shape)) + ";").encode())
                values = state[key].detach().to("cpu", torch.float32).contiguous()
                digest.update(values.numpy().astype("<f4", copy=False))
        return digest.hexdigest()

    def expect_few(self) -> None:
        """A few images are to come: their network is not made faster first, which would take longer than they do."""
        self.fast.wanted = self.fast_joint.wanted = False

    def forget(self) -> None:
        """Drop the fast copies, because weights have changed, or others train. They are made anew when needed."""
        self.fast.forget()
        self.fast_joint.forget()

    def _apply(self, fn, recurse=True):  # .to(device) and the like
        self.forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        self.forget()
        super()._load_from_state_dict(*args, **kwargs)
