"""Few-shot episodes, signs of collapse, pictures of vocabularies."""

import math
from pathlib import Path

import obow_toy
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from probe_toy import DATA, classifier, standing_still, with_words
from torch import nn
from toy import ToyImages, fit, quiet_trainer

from lit_kd.callbacks import (
    CollapseMonitor,
    KNNProbe,
    OnlineLinearProbe,
    VocabularyPanel,
    few_shot_accuracy,
)
from lit_kd.callbacks.vocabulary_panel import nearest_patches, spread_words
from lit_kd.callbacks.word_maps import WordMaps

# Few shots


def test_prototypes_by_hand() -> None:
    # Directions of two classes at 0 and 90 degrees; the long vector must not pull the prototype.
    features = torch.tensor([[100.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0], [0.1, 1.0], [0.3, 0.9]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert few_shot_accuracy(features, labels, 2, 2, 1, 20) == (1.0, 0.0)
    # One sample of each class lies in the other's midst: it is always wrong, as support (1 shot) it misleads.
    swapped = features[[0, 1, 5, 3, 4, 2]]
    mean, half_width = few_shot_accuracy(swapped, labels, 2, 2, 1, episodes=4000, seed=1)
    # The query is the odd one with probability 1/3 in each class; an odd support tilts its prototype to 45 degrees.
    assert 0.3 < mean < 0.8 and 0 < half_width < 0.02
    again = few_shot_accuracy(swapped, labels, 2, 2, 1, episodes=4000, seed=1)
    other = few_shot_accuracy(swapped, labels, 2, 2, 1, episodes=4000, seed=2)
    assert again == (mean, half_width) and other[0] != mean and abs(other[0] - mean) < 2 * half_width


def test_prototypes_equal_a_loop_over_one_episode() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(12, 5), torch.arange(12) % 4
    labels[-4:] = -1  # unlabelled: two samples a class are left, so the episode is fixed but for roles and order
    seen = set()
    for seed in range(40):
        mean, half_width = few_shot_accuracy(features, labels, 4, 1, 1, episodes=1, seed=seed)
        assert math.isnan(half_width)
        seen.add(round(mean, 4))
    expected = set()
    for roles in range(16):
        support = torch.tensor([c + 4 * (roles >> c & 1) for c in range(4)])
        query = torch.tensor([c + 4 * (1 - (roles >> c & 1)) for c in range(4)])
        cosine = F.cosine_similarity(features[query][:, None], features[support][None], dim=2)
        expected.add(round((cosine.argmax(1) == torch.arange(4)).float().mean().item(), 4))
    assert seen <= expected


def test_few_shot_leaves_the_random_state_and_says_what_is_missing() -> None:
    features, before = torch.rand(20, 3), torch.get_rng_state()
    few_shot_accuracy(features, torch.arange(20) % 2, 2, 5, 5, 10)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="ways=3 with shots=5 and queries=5: only 2 classes have 10 samples"):
        few_shot_accuracy(torch.rand(20, 3), torch.arange(20) % 2, 3, 5, 5, 10)


# Collapse and vocabulary


def test_monitor_sees_collapse_and_health() -> None:
    numbers = {}
    for name, weight in (("collapsed", 0.0), ("random", 1.0)):
        module = with_words(classifier(optimizer=standing_still), words=6)
        with torch.no_grad():
            module.network[0].weight *= weight  # type: ignore[index, union-attr, operator]
            module.network[0].bias.fill_(1 - weight)  # type: ignore[index, union-attr, operator]
            places = module.network[:2](torch.rand(2, 3, 8, 8)).movedim(1, 3).flatten(0, 2)  # type: ignore[index]
            module.words.copy_(places[::19][:6])  # type: ignore[operator]
        monitor = CollapseMonitor("network", "2", 11, word_network="network", word_levels={"1": "words"})
        trainer = fit(module, ToyImages(**DATA), callbacks=[monitor], num_sanity_val_steps=2)
        numbers[name] = {key: float(value) for key, value in trainer.callback_metrics.items()}
    collapsed, random = numbers["collapsed"], numbers["random"]
    assert collapsed["val/effective_rank_network"] == pytest.approx(1, abs=1e-3)
    assert collapsed["val/cosine_network"] == pytest.approx(1, abs=1e-5)
    assert collapsed["val/spread_network"] == pytest.approx(0, abs=1e-3)
    assert collapsed["val/words_in_use_1"] == 1 and collapsed["val/words_perplexity_1"] == pytest.approx(1)
    assert 1.1 < random["val/effective_rank_network"] <= 4
    assert random["val/cosine_network"] < 0.999 and random["val/spread_network"] > 0.01
    assert random["val/words_in_use_1"] > 1 and random["val/words_perplexity_1"] > 1.01


def test_patches_nearest_to_a_word() -> None:
    images, features = torch.zeros(3, 1, 8, 8), torch.zeros(3, 2, 4, 4)
    images[1, :, 2:4, 4:6] = 1.0  # the place (1, 2) of the map
    features[1, :, 1, 2] = torch.tensor([1.0, 1.0])
    images[2, :, 0:2, 0:2] = 0.5  # the corner
    features[2, :, 0, 0] = torch.tensor([0.5, 0.5])
    first, second = nearest_patches(images, features, torch.tensor([1.0, 1.0]), 2)
    assert first.shape == (1, 4, 4) and first.sum() == 4 and (first[0, 1:3, 1:3] == 1).all()
    assert second.sum() == 2 and (second[0, 1:3, 1:3] == 0.5).all()
    assert len(nearest_patches(images, features, torch.zeros(2), 9)) == 3
    assert spread_words(torch.tensor([0, 5, 1, 9, 0, 3]), 3).tolist() == [3, 5, 2]
    assert spread_words(torch.tensor([0, 5]), 3).tolist() == [1]


def test_border_places_are_neither_counted_nor_drawn() -> None:
    class Bordered(nn.Module):
        border = 1
        words = torch.tensor([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]])

    module = classifier(nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(32, 3)))
    module.vocabulary = Bordered()
    image = torch.full((2, 2, 4, 4), 9.0)
    image[:, :, 1:3, 1:3] = 0.0
    image[1, :, 2, 2] = 1.0
    words = WordMaps(module, "network", {"0": "vocabulary"})
    (maps,) = words.maps(quiet_trainer(), image)
    assert words.nearest(0, maps).bincount().tolist() == [7, 1]
    (patch,) = nearest_patches(image, maps, torch.ones(2), 1, border=1)
    assert patch.shape == (2, 2, 2)
    torch.testing.assert_close(patch, image[1, :, 1:3, 1:3])
    with pytest.raises(ValueError, match="Classifier has no vocabularies of its own: name the maps"):
        WordMaps(classifier(), "network")


def test_the_probes_read_obow_by_themselves(tmp_path: Path) -> None:
    module = obow_toy.module(obow_toy.network(norm=True))
    before = obow_toy.state(module)
    probes = [OnlineLinearProbe("student", "2"), OnlineLinearProbe("teacher", "2"), KNNProbe("teacher", "2")]
    callbacks = [*probes, CollapseMonitor("student", "2"), VocabularyPanel(num_words=2, max_samples=8)]
    trainer = fit(module, obow_toy.CropImages(batch_size=8, val_fraction=0.25), callbacks=callbacks,
                  max_epochs=2, num_sanity_val_steps=1, default_root_dir=tmp_path)  # fmt: skip
    alone = obow_toy.module(obow_toy.network(norm=True))
    alone.load_state_dict(before)
    fit(alone, obow_toy.CropImages(batch_size=8, val_fraction=0.25), max_epochs=2)
    torch.testing.assert_close(dict(alone.state_dict()), dict(module.state_dict()), rtol=0, atol=0)
    names = {"val/probe_student_acc", "val/probe_teacher_acc", "val/knn20_t0.07_teacher_acc", "val/words_in_use_1"}
    assert names | {"val/words_perplexity_2", "val/spread_student"} <= trainer.callback_metrics.keys()
    assert len(list(tmp_path.glob("vocabulary_[12].png"))) == 2


def test_panel_of_a_fit_a_test_and_of_two_levels(tmp_path: Path) -> None:
    module = with_words(classifier())
    panel = VocabularyPanel({"0": "words", "1": "words"}, "network", num_words=3, num_patches=4, max_samples=9)
    fit(module, ToyImages(**DATA), callbacks=[panel], default_root_dir=tmp_path)
    for level in ("0", "1"):
        width, height = Image.open(tmp_path / f"vocabulary_{level}.png").size
        assert width > height > 200
    (tmp_path / "vocabulary_1.png").unlink()
    quiet_trainer(callbacks=[panel], default_root_dir=tmp_path).test(module, ToyImages(**DATA), verbose=False)
    assert (tmp_path / "vocabulary_1.png").stat().st_size > 1000
    assert not list(tmp_path.glob(".*tmp*"))
    with pytest.warns(UserWarning, match="there was no validation"):
        fit(module, ToyImages(batch_size=10), callbacks=[panel])
