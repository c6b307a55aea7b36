"""Model cards: what they say, that their code loads what was exported, and what must not get into them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_toy import causal
from chat_toy import saved as saved_causal
from huggingface_hub import ModelCard
from minilm_toy import encoder, saved
from torch import nn
from toy import toy_network

import lit_kd
from lit_kd.methods import Distill
from lit_kd.models import Origin, Paper, causal_lm, save_exported, text_encoder, vision_model
from lit_kd.models.card import hub_name, public

PAPER = Paper("On {Computable} Numbers", "Alan Turing and Ada Lovelace", 1936, "1234.56789")


def code_of(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def text_of(folder: Path) -> str:
    """All files of an export but the weights and the adapter's configuration, in which peft wants the base's path."""
    files = [path for path in folder.rglob("*.*") if path.suffix != ".safetensors"]
    return "\n".join(path.read_text(encoding="utf-8") for path in files if path.name != "adapter_config.json")


def vision(folder: Path) -> nn.Module:
    return vision_model("resnet8", 10, in_chans=1, mean=(0.2,), std=(0.3,), model_kwargs={"shortcut": "B"})


def timm_network(folder: Path) -> nn.Module:
    return vision_model("resnet10t", 5, mean=(0.1, 0.2, 0.3), model_kwargs={"drop_rate": 0.1})


def features(folder: Path) -> nn.Module:
    return vision_model("resnet8", 0, normalize=False)


def text(folder: Path) -> nn.Module:
    return text_encoder(saved(encoder(), folder), init="random")


def text_classifier(folder: Path) -> nn.Module:
    return text_encoder(saved(encoder(), folder), head="sequence_classification", num_labels=3)


def text_reader(folder: Path) -> nn.Module:
    return text_encoder(saved(encoder("roberta"), folder), head="question_answering")


def without_tokenizer(folder: Path) -> nn.Module:
    encoder().save_pretrained(folder)
    return text_encoder(str(folder))


def language_model(folder: Path) -> nn.Module:
    return causal_lm(saved_causal(folder, causal("gpt2"), template=None))


def chat_model(folder: Path) -> nn.Module:
    network: Any = causal_lm(saved_causal(folder), lora={"r": 2, "target_modules": "all-linear"})
    for parameter in network.parameters():
        parameter.data += 0.01 * parameter.requires_grad
    return network


def foreign(folder: Path) -> nn.Module:
    return toy_network()


@pytest.mark.parametrize(
    ("build", "library", "task", "blocks"),
    [
        (vision, "lit_kd", "image-classification", 1),
        (timm_network, "lit_kd", "image-classification", 2),
        (features, "lit_kd", "image-feature-extraction", 1),
        (text, "transformers", "feature-extraction", 1),
        (text_classifier, "transformers", "text-classification", 1),
        (text_reader, "transformers", "question-answering", 1),
        (without_tokenizer, "transformers", "feature-extraction", 1),
        (language_model, "transformers", "text-generation", 1),
        (chat_model, "transformers", "text-generation", 1),
        (foreign, "pytorch", None, 1),
    ],
)
@pytest.mark.filterwarnings("ignore:.*holds no tokenizer.*")
@torch.no_grad()
def test_the_code_of_the_card_loads_the_network(
    build: Callable[[Path], nn.Module],
    library: str,
    task: str | None,
    blocks: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network = build(tmp_path / "base").eval()
    out = save_exported(network, tmp_path / "out")
    card = ModelCard.load(out / "README.md")
    data = card.data.to_dict()
    assert (data["library_name"], data.get("pipeline_tag"), data.get("license")) == (library, task, None)
    assert str(tmp_path) not in text_of(out)
    monkeypatch.chdir(out)
    codes = code_of(out)
    assert len(codes) == blocks
    for code in codes:
        found: dict[str, Any] = {}
        exec(code, found)
        loaded = found["network"] if "network" in found else found["load"](toy_network(width=4))
        assert not loaded.training
        if library == "transformers":
            ids = {"input_ids": torch.tensor([[3, 4, 5, 6]])}
            for ours, theirs in zip(network(**ids).to_tuple(), loaded(**ids).to_tuple(), strict=True):
                if isinstance(ours, torch.Tensor):  # not a causal network's cache
                    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
        elif "image" in found:
            output = found["logits" if task == "image-classification" else "features"]
            torch.testing.assert_close(output, network(found["image"]), rtol=1e-4, atol=1e-5)
        else:
            image = torch.rand(2, 3, 8, 8)
            assert torch.equal(loaded(image), network(image))


def test_metadata_go_round(tmp_path: Path) -> None:
    origin = Origin(
        method="MyDistill",
        summary="A summary.",
        papers=(PAPER,),
        limits="It forgets.",
        teacher="`big`",
        data="Letters",
        dataset="me/letters",
        settings={"lr": 0.1, "net": {"depth": 3, "name": "a|b"}},
        metrics={"val/acc": 0.5, "test/nll": 0.123456789, "train/loss": 2.0, "val/kl": float("nan")},
        measured="In the end.",
        license="mit",
        notes="# Mine\n",
    )
    save_exported(vision_model("resnet8", 10), tmp_path, origin=origin)
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data
    assert (data.license, data.datasets, data.base_model) == ("mit", ["me/letters"], None)
    assert data.tags == ["lit_kd", "knowledge-distillation", "MyDistill", "arxiv:1234.56789"]
    assert data.model_name == "resnet8, trained by MyDistill"
    assert [(r.dataset_split, r.metric_type, r.metric_name, r.metric_value) for r in data.eval_results] == [
        ("validation", "accuracy", "val/acc", 0.5),
        ("test", "nll", "test/nll", 0.123457),
    ]
    for line in (
        "A summary.",
        "Alan Turing, Ada Lovelace: *On {Computable} Numbers*, 1936, [arXiv:1234.56789]",
        "- Teacher: `big`.",
        "Data: Letters (`me/letters`).",
        "| net.depth | 3 |",
        "| net.name | a\\|b |",
        "In the end.",
        "| val/kl | nan |",
        "- It forgets.",
        "# Mine",
        "  author = {Alan Turing and Ada Lovelace},",
    ):
        assert line in card.text, line
    assert "Not known" not in card.text


def test_what_nobody_said_is_called_unknown(tmp_path: Path) -> None:
    save_exported(vision_model("resnet8", 10), tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.text.count("- Not known: ") == 3 and "knowledge-distillation" not in card.data.tags
    assert "None" not in card.content and "## Citation" not in card.text


def test_base_models_are_names_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder here is none, even where its name could be one."""
    monkeypatch.chdir(tmp_path)
    Path("runs/base").mkdir(parents=True)
    network: Any = text_encoder(saved(encoder(), Path("runs/base")))
    save_exported(network, "local")
    assert ModelCard.load("local/README.md").data.base_model is None
    network.weights_from = "me/base"
    save_exported(network, "hub")
    assert ModelCard.load("hub/README.md").data.base_model == "me/base"
    assert "from `me/base`" in Path("hub/README.md").read_text()
    assert text_encoder("runs/base", init="random").weights_from is None
    assert [hub_name(one) for one in ("runs/base", "me/base", "bert-base-uncased", "/a/b", "a/b/c", None)] == [
        *(None, "me/base", "bert-base-uncased"),
        *(None, None, None),
    ]


def test_the_adapter_has_a_card_without_the_path_of_its_base(tmp_path: Path) -> None:
    network: Any = chat_model(tmp_path / "base")
    for name, base in ((None, None), ("me/base", "me/base")):
        network.weights_from = name or network.tokenizer_path
        save_exported(network, tmp_path / "out", origin=Origin(license="mit"))
        for folder, library in (("out", "transformers"), ("out/adapter", "peft")):
            card = ModelCard.load(tmp_path / folder / "README.md")
            data = card.data.to_dict()
            assert (data["library_name"], data["license"], data.get("base_model")) == (library, "mit", base)
            assert str(tmp_path) not in card.content


@pytest.mark.parametrize(
    "name",
    ["api_key", "token", "hub_token", "password", "passwd", "client_secret", "credentials", "Authorization"],
)
def test_text_under_a_name_of_secrets_is_left_out(name: str) -> None:
    assert public({"a": [{name: "x"}], "b": {"c": {name: "swordfish", "d": 1}}, name: "swordfish"}) == {"b.c.d": "1"}


@pytest.mark.parametrize(
    "value",
    [
        "hf_" + "a" * 34,
        "sk-proj-1234",
        "ghp_12345",
        "AKIA1234",
        "0123456789abcdef" * 2,
        "https://me:swordfish@example.org/v1",
        "line\nbreak",
        "x" * 121,
        object(),
        {1, 2},
        None,
    ],
)
def test_values_that_are_left_out(value: Any) -> None:
    assert public({"name": value, "names": ["a", value]}) == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("/home/ada/models/bert", "bert"),
        ("~/bert/", "bert"),
        (Path("/home/ada/bert.ckpt"), "bert.ckpt"),
        ("C:\\Users\\ada\\bert", "bert"),
        ("--root=/home/ada/data", "data"),
        (["/home/ada/a", "b/c"], "[a, b/c]"),
        ("runs/digits/teacher.ckpt", "runs/digits/teacher.ckpt"),
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("lit_kd.models.vision_model", "lit_kd.models.vision_model"),
        (3e-4, "0.0003"),
        (False, "False"),
        ((3, 32, 32), "[3, 32, 32]"),
    ],
)
def test_values_that_are_shown(value: Any, text: str) -> None:
    assert public({"tokenizer": value}) == {"tokenizer": text}


def test_numbers_of_tokens_are_no_secrets() -> None:
    assert public({"max_new_tokens": 512, "tokenizer": "gpt2"}) == {"max_new_tokens": "512", "tokenizer": "gpt2"}


def test_every_published_method_names_its_papers_as_its_page_does() -> None:
    methods = [getattr(lit_kd, name) for name in lit_kd.__all__]
    classes = [one for one in methods if isinstance(one, type) and issubclass(one, Distill)]
    with_paper = {one.__name__ for one in classes if one.papers}
    assert with_paper == {
        *("MCMITeacher", "MCMIDistill", "DefensiveDistill", "OBoWModule", "MiniLMDistill"),
        *("SSBDistill", "SyntheticDistill", "MGSRDistill"),
    }
    docs = "\n".join(page.read_text() for page in (Path(__file__).parents[2] / "docs").glob("*.md"))
    for paper in {paper for one in classes for paper in one.papers}:
        assert f"arxiv.org/abs/{paper.arxiv}" in docs, paper.title
        assert paper.authors.partition(" and ")[0].split()[-1] in docs
