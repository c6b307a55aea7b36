"""Two methods of lit_kd in a project with a network and data of its own.

python main.py
python -m lit_kd fit -c obow.yaml    # the second one by the command line; start both in this folder
"""

from functools import partial

import torch
from data import Digits
from lightning.pytorch import LightningModule, Trainer, seed_everything
from network import Net

from lit_kd import Classifier, MCMIDistill, MCMITeacher, OBoWModule
from lit_kd.callbacks import ExportStudent, KNNProbe
from lit_kd.objectives import DKD

# Optimizers in the place of the papers' recipes, which are for longer runs.
adam, adam_tune = partial(torch.optim.Adam, lr=3e-3), partial(torch.optim.Adam, lr=3e-4)
SETTINGS = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def fit(module: LightningModule, data: Digits, epochs: int, export: str | None = None) -> None:
    """Train, and write the network and its model card into a folder."""
    callbacks = [ExportStudent(export)] if export else []
    Trainer(max_epochs=epochs, callbacks=callbacks, **SETTINGS).fit(module, datamodule=data)


def accuracy(module: LightningModule, data: Digits) -> float:
    """On the test images, in percent."""
    return 100 * Trainer(**SETTINGS).test(module, datamodule=data, verbose=False)[0]["test/acc"]


def neighbours(module: LightningModule, data: Digits) -> float:
    """k-NN accuracy of the features on the test images, in percent; labels are used here alone."""
    probe = KNNProbe()
    numbers = Trainer(callbacks=[probe], **SETTINGS).test(module, datamodule=data, verbose=False)[0]
    return 100 * numbers[f"test/{probe.metric}"]


def mcmi() -> None:
    """A teacher, tuned for its conditional mutual information, and students of 100 images."""
    data, few = Digits(), Digits(train_images=100)
    teacher = Net(width=16)
    fit(Classifier(teacher, num_classes=10, optimizer=adam), data, epochs=8)
    tuned = MCMITeacher(teacher, num_classes=10, weight=0.15, optimizer=adam_tune)
    fit(tuned, data, epochs=2)
    print(f"MCMI teacher {accuracy(tuned, data):.1f} %")

    torch.manual_seed(1)
    alone = Classifier(Net(width=8), num_classes=10, optimizer=adam)
    fit(alone, few, epochs=100)
    print(f"student alone {accuracy(alone, few):.1f} %")

    torch.manual_seed(1)  # the same start
    student = MCMIDistill(Net(width=8), teacher, 10, objective=DKD(beta=2.0), image_shape=(3, 16, 16), optimizer=adam)
    fit(student, few, epochs=100, export="export/mcmi")
    print(f"student distilled {accuracy(student, few):.1f} %")


def obow() -> None:
    """Features without labels: those of a random network, and what OBoW makes of them."""
    data = Digits(crops=2)
    module = OBoWModule(
        Net(width=16, num_classes=0),
        levels=["top"],  # dotted paths in the network; 4x4 places here
        border=0,
        pool_kernel=1,
        num_words=256,
        inverse_delta=100.0,
        kappa=5.0,
        image_shape=(3, 16, 16),
        optimizer=adam,
    )
    print(f"k-NN of a random network {neighbours(module, data):.1f} %")
    fit(module, data, epochs=10, export="export/obow")
    print(f"k-NN after OBoW {neighbours(module, data):.1f} %")


if __name__ == "__main__":
    seed_everything(0, verbose=False)
    mcmi()
    obow()
