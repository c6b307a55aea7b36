"""``lit-kd fit|validate|test|predict -c config.yaml``."""

# ruff: noqa: E402, I001  the first import of Lightning has to be the one below
import warnings
from typing import Any
from unittest.mock import patch

from lightning_utilities.core.imports import RequirementCache

_check = RequirementCache.__bool__


def _is_met(requirement: RequirementCache) -> bool:
    return not (requirement.requirement or "").startswith("transformers") and _check(requirement)


# Lightning imports torchmetrics, which imports transformers for BERTScore and CLIPScore: a second that `--help` and the
# image methods need not wait. The language methods import transformers themselves.
with patch.object(RequirementCache, "__bool__", _is_met):
    import lightning.pytorch  # noqa: F401

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

# Imported for their effect: `class_path: MCMIDistill` finds a class by its short name once it is imported.
import lit_kd.callbacks
import lit_kd.datamodules
import lit_kd.methods
import lit_kd.models
import lit_kd.objectives  # noqa: F401
from lit_kd import __version__
from lit_kd.methods import Distill


class _Parser(LightningArgumentParser):
    def add_function_arguments(self, *args: Any, linked_targets: Any = None, **kwargs: Any) -> Any:
        # jsonargparse 4.53 hands the model's links down to a factory function in its arguments when the command line
        # overrides another argument of the model, and then fails: "unexpected keyword argument 'linked_targets'".
        return super().add_function_arguments(*args, **kwargs)


class SaveFitConfig(SaveConfigCallback):
    """``config.yaml`` beside the run is that of the fit: a test of the same run must not replace it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save when fitting."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class LitKDCLI(LightningCLI):
    """LightningCLI for any method of ours with any data module.

    Args:
        args: words that replace ``sys.argv``.
        run: False: only build ``model``, ``datamodule`` and ``trainer``, e.g. in a notebook; ``args`` then has no
            subcommand.
    """

    def __init__(self, args: ArgsType = None, run: bool = True) -> None:
        super().__init__(
            Distill,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_class=_Parser,
            seed_everything_default=0,
            parser_kwargs={"version": f"lit_kd {__version__}"},
            save_config_callback=SaveFitConfig,
            save_config_kwargs={"overwrite": True},
            args=args,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What the data know is not asked twice; a link whose target a model does not have is ignored."""
        for known, target in (
            ("num_classes", "num_classes"),
            ("num_labels", "num_labels"),
            ("num_labels", "network.init_args.num_labels"),
            ("task", "task"),
            ("kind", "kind"),
            ("labels", "labels"),
        ):
            parser.link_arguments(f"data.{known}", f"model.init_args.{target}", apply_on="instantiate")
        parser.link_arguments("data", "model.init_args.image_shape", compute_fn=_image_shape, apply_on="instantiate")


def _image_shape(data: LightningDataModule) -> tuple[int, int, int]:
    size = getattr(data, "image_size", 32)
    return (3, size, size)


def main(args: ArgsType = None) -> None:
    """Run the command line; ``args`` as a list of words replaces ``sys.argv``."""
    warnings.filterwarnings("ignore", message=r"Total length of `list` across ranks is zero")  # no validation set
    warnings.filterwarnings("ignore", message=r"`?isinstance\(treespec, LeafSpec\)")  # Lightning 2.6 under torch 2.14
    LitKDCLI(args)
