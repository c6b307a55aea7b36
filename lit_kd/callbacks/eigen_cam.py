"""What two networks look at, side by side."""

from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from lit_kd.checks import check_network, check_whole
from lit_kd.files import replacing
from lit_kd.models.modes import eval_mode
from lit_kd.models.taps import FeatureTaps, stage_paths


class EigenCAMPanel(Callback):
    """Draws Eigen-CAM maps of a reference network and of the module's own, for test images of one class.

    Eigen-CAM (arXiv:2008.00299): the activations of the last stage, (H * W, channels) and centred, are projected on
    their first principal component and scaled up to the image. It needs no gradient and no label. For MCMI the
    reference is the teacher before its fine-tuning, as in the paper's Figure 3.
    Written as ``eigen_cam_<class>.png`` into the run's log folder at the end of a fit or test.

    Args:
        reference: the network to compare with.
        class_index: class of the images.
        num_images: columns.
        layer: dotted path of a map (B, C, H, W) in both networks; None: each one's own last stage.
        names: titles of the rows: the reference, the module's network.

    Raises:
        ModuleNotFoundError: without the extra ``plots``.
        ValueError: the path does not exist, or the test set has no image of that class.
    """

    def __init__(
        self,
        reference: nn.Module,
        class_index: int = 0,
        num_images: int = 8,
        layer: str | None = None,
        names: tuple[str, str] = ("MLL teacher", "MCMI teacher"),
    ) -> None:
        require_plots("EigenCAMPanel")
        check_network(reference=reference)
        check_whole(0, class_index=class_index)
        check_whole(num_images=num_images)
        self.reference = reference.eval()
        self.class_index, self.num_images = class_index, num_images
        self.layer, self.names = layer, names

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the layers before anything is trained."""
        self._networks: list[nn.Module] = [self.reference, pl_module.network]  # type: ignore[list-item]
        self._taps = [FeatureTaps(net, [self.layer or stage_paths(net)[-1]]) for net in self._networks]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        self.draw(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        self.draw(trainer, pl_module)

    @torch.no_grad()
    def draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the maps on the module's device and write the picture on rank 0."""
        images = self._images(trainer)
        self.reference.to(pl_module.device)
        maps = []
        for network, taps in zip(self._networks, self._taps, strict=True):
            with eval_mode(network), taps as features:
                network(images)
            maps.append(eigen_cam(features[taps.paths[0]], (images.shape[-2], images.shape[-1])))
        class_name = getattr(trainer.datamodule, "class_names", {self.class_index: self.class_index})[self.class_index]  # type: ignore[attr-defined]
        path = Path(trainer.log_dir or trainer.default_root_dir) / f"eigen_cam_{class_name}.png"
        _write(path, f"Eigen-CAM, class {class_name}", images.cpu(), dict(zip(self.names, maps, strict=True)))

    def _images(self, trainer: Trainer) -> Tensor:
        data = trainer.datamodule  # type: ignore[attr-defined]
        data.setup("test")
        chosen: list[Tensor] = []
        for batch in data.test_dataloader():
            batch = trainer.strategy.batch_to_device(batch)
            chosen.extend(batch["image"][batch["label"] == self.class_index])
            if len(chosen) >= self.num_images:
                break
        if not chosen:
            raise ValueError(f"The test set has no image of class_index={self.class_index}.")
        return torch.stack(chosen[: self.num_images])


def eigen_cam(activations: Tensor, size: tuple[int, int]) -> Tensor:
    """Eigen-CAM maps (B, H, W) in [0, 1] of activations (B, C, h, w)."""
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection_with_sign_correction

    projected = torch.from_numpy(get_2d_projection_with_sign_correction(activations.float().cpu().numpy()))
    maps = F.interpolate(projected[:, None], size=size, mode="bilinear").squeeze(1).clamp(min=0)
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)


def require_plots(who: str) -> None:
    """Raise a ModuleNotFoundError that names the extra, before training rather than after."""
    try:
        import matplotlib  # noqa: F401
        import pytorch_grad_cam  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{who} needs {error.name}: pip install 'lit-kd[plots]'.") from error


@rank_zero_only
def _write(path: Path, title: str, images: Tensor, rows: dict[str, Tensor]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.3 * len(images) + 1, 1.4 * (len(rows) + 1)), layout="constrained")
    axes = figure.subplots(len(rows) + 1, len(images), squeeze=False)
    for column, image in enumerate(images.permute(0, 2, 3, 1)):
        axes[0][column].imshow(image)
        for row, maps in enumerate(rows.values(), start=1):
            axes[row][column].imshow(image.mean(-1), cmap="gray", vmin=0, vmax=1)
            axes[row][column].imshow(maps[column], cmap="jet", alpha=0.5, vmin=0, vmax=1)
    for row, name in enumerate(["image", *rows]):
        axes[row][0].set_ylabel(name, fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(title, fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
