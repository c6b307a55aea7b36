import copy

import pytest
import torch
from torch import nn
from toy import toy_network

from lit_kd.models import FeatureTaps, FrozenTeacher, vision_model
from lit_kd.models.modes import eval_mode
from lit_kd.models.taps import embedding_path, stage_paths


class Parent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(3, 2)
        self.teacher = FrozenTeacher(
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
        )


def test_teacher_sleeps_through_train_calls_and_its_statistics_do_not_move() -> None:
    parent = Parent()
    before = copy.deepcopy(parent.teacher.module[1].running_mean)
    parent.train()
    first, second = parent.teacher(torch.ones(5, 3)), parent.teacher(torch.ones(5, 3))
    assert not any(part.training for part in parent.teacher.modules())
    assert torch.equal(first, second), "dropout is on"
    assert torch.equal(parent.teacher.module[1].running_mean, before)
    assert not first.requires_grad and not any(p.requires_grad for p in parent.teacher.parameters())


def test_teacher_is_absent_from_the_state_dict_and_a_strict_load_does_not_miss_it() -> None:
    parent = Parent()
    state = parent.state_dict()
    assert set(state) == {"student.weight", "student.bias"}
    other = Parent()
    kept = copy.deepcopy(other.teacher.module[0].weight)
    other.load_state_dict(state, strict=True)
    assert torch.equal(other.student.weight, parent.student.weight)
    assert torch.equal(other.teacher.module[0].weight, kept)
    with pytest.raises(RuntimeError, match=r"student\.bias"):
        other.load_state_dict({"student.weight": state["student.weight"]})


def test_taps_record_only_inside_the_block_and_the_last_forward_wins() -> None:
    network = toy_network()
    taps = FeatureTaps(network, ["0", "5:input"])
    network(torch.zeros(1, 3, 8, 8))
    with taps as features:
        assert features == {}
        network(torch.zeros(7, 3, 8, 8))
        network(torch.ones(2, 3, 8, 8))
    assert features["0"].shape == (2, 4, 8, 8) and features["5:input"].shape == (2, 4)
    kept = features["0"]
    network(torch.zeros(3, 3, 8, 8))
    assert features["0"] is kept, "a forward outside the block was recorded"
    with taps as again:
        network(torch.zeros(3, 3, 8, 8))
    assert again["0"].shape[0] == 3 and features["0"] is kept


def test_taps_let_gradients_through_and_survive_an_exception() -> None:
    network = toy_network()
    taps = FeatureTaps(network, ["1"])
    with pytest.raises(RuntimeError), taps:
        network(torch.zeros(1, 5, 8, 8))
    with taps as features:
        network(torch.ones(1, 3, 8, 8))
    features["1"].sum().backward()
    assert network[0].weight.grad is not None and network[0].weight.grad.abs().sum() > 0


def test_taps_work_in_a_compiled_network() -> None:
    network = toy_network()
    taps = FeatureTaps(network, ["1"])
    network.compile(backend="aot_eager")
    image = torch.rand(2, 3, 8, 8)
    with taps as features:
        network(image)
    torch.testing.assert_close(features["1"], network[0](image).relu())
    with taps as features:
        network(2 * image)
    torch.testing.assert_close(features["1"], network[0](2 * image).relu())


def test_taps_name_the_nearest_paths() -> None:
    with pytest.raises(ValueError, match=r"no sub-module 'backbone.layr3'; nearest: .*backbone.layer3"):
        FeatureTaps(vision_model("resnet8", 10), ["backbone.layr3"])


@pytest.mark.parametrize(
    "name", ["resnet8", "wrn_16_2", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2", "resnet18"]
)
def test_default_paths_exist_and_the_embedding_is_what_the_classifier_reads(name: str) -> None:
    network = vision_model(name, 7).eval()
    paths = [*stage_paths(network), *stage_paths(network, preactivation=True), embedding_path(network)]
    taps = FeatureTaps(network, paths)
    with taps as features:
        logits = network(torch.rand(2, 3, 32, 32))
    classifier = network.get_submodule(paths[-1].removesuffix(":input"))
    torch.testing.assert_close(classifier(features[paths[-1]]), logits)
    assert all(features[path].ndim == 4 for path in paths[:-1])


def test_networks_that_do_not_describe_themselves_ask_for_layer_names() -> None:
    with pytest.raises(ValueError, match="name them in student_layers / teacher_layers"):
        stage_paths(toy_network())
    with pytest.raises(ValueError, match="name the embedding"):
        embedding_path(toy_network())


def test_eval_mode_restores_every_flag_also_after_an_exception() -> None:
    network = toy_network().train()
    network[4].eval()
    with eval_mode(network):
        assert not any(part.training for part in network.modules())
    with pytest.raises(RuntimeError), eval_mode(network):
        network(torch.zeros(1))
    assert [part.training for part in network] == [True, True, True, True, False, True]
