"""A student of OBoW as a classifier of visual words."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_kd.models.factory import VisionModel, vision_model
from lit_kd.models.modes import eval_mode
from lit_kd.models.taps import FeatureTaps, embedding_path


class WordClassifier(nn.Module):
    """Logits of words from any network: ``z = fc(mean over places of the map at layer)``.

    Args:
        network: the student.
        layer: dotted path of a map (B, C, H, W) in it.
        weight: (K, C), kappa * W.
    """

    def __init__(self, network: nn.Module, layer: str, weight: Tensor) -> None:
        super().__init__()
        self.network = network
        self.fc = nn.Linear(weight.shape[1], weight.shape[0])
        self.taps = FeatureTaps(network, [layer])
        _fill(self.fc, weight)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K)."""
        with self.taps as maps:
            self.network(image)
        return self.fc(maps[self.taps.paths[0]].mean((2, 3)))


@torch.no_grad()
def word_classifier(student: nn.Module, layer: str, weight: Tensor) -> nn.Module:
    """A copy of the student whose classifier has the weights kappa * W and no bias, in eval mode.

    Args:
        student: the pretrained network; it stays as it is.
        layer: the map whose mean is the feature.
        weight: (K, C), kappa * W.

    Returns:
        For a ``vision_model`` whose own classifier reads that very mean, as ResNets' do, a ``vision_model`` with K
        classes, which :func:`lit_kd.models.save_exported` writes as a timm network; otherwise a
        :class:`WordClassifier` around the student itself.
    """
    if isinstance(student, VisionModel):
        network = vision_model(**{**student.architecture, "num_classes": len(weight)}).to(weight.device)
        classifier = embedding_path(network).removesuffix(":input")
        head = network.get_submodule(classifier)
        own = {k: v for k, v in student.state_dict().items() if not k.startswith(f"{classifier}.")}
        missing = network.load_state_dict(own, strict=False).missing_keys
        if isinstance(head, nn.Linear) and head.in_features == weight.shape[1]:
            _fill(head, weight)
            if all(key.startswith(f"{classifier}.") for key in missing) and _agree(
                network.eval(), student, layer, weight
            ):
                return network
    return WordClassifier(student, layer, weight).eval()


def _agree(network: nn.Module, student: nn.Module, layer: str, weight: Tensor) -> bool:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(weight.device)
    taps = FeatureTaps(student, [layer])
    with eval_mode(student), taps as maps:
        student(image)
    return torch.allclose(network(image), F.linear(maps[layer].mean((2, 3)), weight), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def _fill(linear: nn.Linear, weight: Tensor) -> None:
    linear.weight.copy_(weight)
    linear.bias.zero_()
