"""CIFAR networks of the distillation literature, registered with timm on import.

After ``import lit_kd.models.cifar``, ``timm.create_model("resnet20", num_classes=100)`` builds one. All take
``num_classes``, ``in_chans`` and ``drop_rate``, and have timm's interface (``CIFARNetwork``).

Parameters for 100 classes, as in RepDistiller, the code of CRD (Tian et al., arXiv 1910.10699). Its ResNets
have ``shortcut="B"``; the default of resnet8 to resnet110 is "A", as in He et al.:

=========  =========  =========    ==========  =========    ============  =========
network            A          B    network                  network
=========  =========  =========    ==========  =========    ============  =========
resnet8       81,140     83,892    resnet8x4   1,233,540    vgg8          3,965,028
resnet14     178,356    181,108    resnet32x4  7,433,860    vgg13         9,462,180
resnet20     275,572    278,324    wrn_16_2      703,284    mobilenetv2     812,836
resnet32     470,004    472,756    wrn_40_1      569,780    shufflenetv1    949,258
resnet44     664,436    667,188    wrn_40_2    2,255,156    shufflenetv2  1,355,528
resnet56     858,868    861,620
resnet110  1,733,812  1,736,564
=========  =========  =========    ==========  =========    ============  =========
"""

from lit_kd.models.cifar.mobilenet import CIFARMobileNetV2, mobilenetv2
from lit_kd.models.cifar.network import CIFARNetwork
from lit_kd.models.cifar.papernot import PapernotCNN, papernot_cnn
from lit_kd.models.cifar.resnet import (
    CIFARResNet,
    resnet8,
    resnet8x4,
    resnet14,
    resnet20,
    resnet32,
    resnet32x4,
    resnet44,
    resnet56,
    resnet110,
)
from lit_kd.models.cifar.shufflenet import CIFARShuffleNet, shufflenetv1, shufflenetv2
from lit_kd.models.cifar.vgg import CIFARVGG, vgg8, vgg13
from lit_kd.models.cifar.wide_resnet import CIFARWideResNet, wrn_16_2, wrn_40_1, wrn_40_2

__all__ = [
    "CIFARMobileNetV2",
    "CIFARNetwork",
    "CIFARResNet",
    "CIFARShuffleNet",
    "CIFARVGG",
    "CIFARWideResNet",
    "PapernotCNN",
    "mobilenetv2",
    "papernot_cnn",
    "resnet110",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet32x4",
    "resnet44",
    "resnet56",
    "resnet8",
    "resnet8x4",
    "shufflenetv1",
    "shufflenetv2",
    "vgg13",
    "vgg8",
    "wrn_16_2",
    "wrn_40_1",
    "wrn_40_2",
]
