"""The four stages of semantic soft bootstrapping on a tiny network and an engine with answers by heart."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_toy import VOCABULARY, causal, saved
from ssb_toy import as_if_accepted, as_if_answered
from toy import quiet_trainer

from lit_kd.datamodules import ArithmeticDataModule, HintsDataModule, RightAnswersDataModule, SSBDataModule
from lit_kd.language.chat import encode_completion, lm_tokenizer
from lit_kd.language.engines import Completion, Sampling
from lit_kd.language.records import read_manifest, read_records
from lit_kd.language.teacher_files import read_logprobs
from lit_kd.losses import forward_kl
from lit_kd.methods import LanguageModel, Refinement, Rollouts, SSBDistill, TeacherLogits
from lit_kd.models import causal_lm

TEMPLATE = "{problem} Right: {right} Wrong: {wrong}"
LORA: dict[str, Any] = {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"]}


class Scripted:
    """Writes answers of given patterns: r right, w wrong, v wrong otherwise, n none, c right but cut."""

    def __init__(self, tokenizer: Any, patterns: list[str], solution: str = r"Beware. \boxed{G}") -> None:
        self.tokenizer, self.patterns, self.solution = tokenizer, patterns, solution
        self.calls: list[list[int]] = []

    def generate(self, prompts: Any, sampling: Sampling, keys: Any = None) -> list[list[Completion]]:
        self.calls.append(list(keys))
        found = []
        for prompt, key in zip(prompts, keys, strict=True):
            gold = gold_of(key)
            if "Right:" in prompt[-1]["content"]:
                texts = [self.solution.replace("G", str(gold))]
            else:
                word = {"r": str(gold), "w": str(gold + 1), "v": str(gold + 2), "n": "none", "c": str(gold)}
                texts = [
                    ("" if p == "n" else f"try {i}: \\boxed{{{word[p]}}}") for i, p in enumerate(self.patterns[key])
                ]
            cut = len(texts) > 1 and self.patterns[key].startswith("c")
            found.append([self.completion(t, "length" if cut and i == 0 else "stop") for i, t in enumerate(texts)])
        return found

    def completion(self, text: str, reason: Any) -> Completion:
        ids = encode_completion(self.tokenizer, text)
        return Completion(text, reason, tuple(ids if reason == "stop" else ids[:-1]), 5, len(ids))

    def describe(self) -> dict[str, Any]:
        return {"kind": "scripted"}


def gold_of(index: int) -> int:
    return int(ArithmeticDataModule(tokenizer="", samples=8).problems("train")[index].gold)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return saved(tmp_path / "base", causal(max_position_embeddings=600))


def problems(path: str) -> ArithmeticDataModule:
    return ArithmeticDataModule(tokenizer=path, samples=8, predict_on="train", eval_batch_size=3)


PATTERNS = ["rrww", "wrwv", "rrrr", "wwww", "nrnw", "crww", "vwwr", "nnnn"]


def stages(path: str, folder: Path, patterns: list[str] | None = None, **changes: Any) -> tuple[str, str]:
    """Rollouts and refinement by a scripted engine."""
    engine = Scripted(lm_tokenizer(path), patterns or PATTERNS, **changes)
    first, second = str(folder / "rollouts"), str(folder / "refined")
    quiet_trainer().predict(Rollouts(first, Sampling(samples=4), engine=engine), problems(path))
    hints = HintsDataModule(rollouts=first, template=TEMPLATE, eval_batch_size=3)
    quiet_trainer().predict(Refinement(second, engine=engine), hints)
    return first, second


def test_rollouts_keep_everything(path: str, tmp_path: Path) -> None:
    rollouts, _ = stages(path, tmp_path)
    rows = read_records(rollouts)
    assert [row["index"] for row in rows] == list(range(8))
    assert [[one["right"] for one in row["answers"]] for row in rows][:2] == [[1, 1, 0, 0], [0, 1, 0, 0]]
    assert rows[4]["answers"][0]["answer"] is None and rows[4]["answers"][1]["answer"] == str(gold_of(4))
    tokenizer = lm_tokenizer(path)
    for row in rows:
        for answer in row["answers"]:
            if answer["finish_reason"] == "stop":
                assert answer["ids"] == encode_completion(tokenizer, answer["text"])
    manifest = read_manifest(rollouts)
    assert manifest["sampling"]["samples"] == 4 and manifest["kind"] == "number"
    assert manifest["data"]["class"] == "ArithmeticDataModule" and "eval_batch_size" not in manifest["data"]


def test_pairs_are_the_first_right_and_the_commonest_wrong_one(path: str, tmp_path: Path) -> None:
    _, refined = stages(path, tmp_path)
    chosen = {row["index"]: (row["right"], row["wrong"]) for row in read_records(refined)}
    assert chosen.keys() == {0, 1, 4, 5, 6}  # neither all right nor all wrong, and no answer is neither
    assert chosen[0] == (0, 2) and chosen[1][0] == 1 and chosen[4] == (1, 3) and chosen[6] == (3, 1)
    assert chosen[5] == (1, 2)  # what was cut is neither


def test_accepted_solutions_and_why_others_are_not(path: str, tmp_path: Path) -> None:
    _, refined = stages(path, tmp_path / "a")
    assert all(row["reason"] is None and row["attempts"] == 1 for row in read_records(refined))
    _, refined = stages(path, tmp_path / "b", solution=r"As in the first attempt, \boxed{G}")
    rows = read_records(refined)
    assert all(row["reason"].startswith("leak") and row["attempts"] == 4 for row in rows)
    with pytest.raises(ValueError, match="None of the 5 solutions in .* was accepted"):
        SSBDataModule(refined=refined, tokenizer=path).setup("fit")


def test_no_problem_with_both(path: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"None of the 8 problems .* both right and wrong \(3 were"):
        stages(path, tmp_path, ["rrrr", "wwww", "rrrr", "wwww", "nnnn", "rrnn", "wwww", "nwww"])


def test_killed_stages_go_on_to_the_same_files(path: str, tmp_path: Path) -> None:
    whole, _ = stages(path, tmp_path / "whole")
    content = (Path(whole) / "rows-00000.jsonl").read_bytes()
    lines = content.splitlines(keepends=True)
    part = tmp_path / "part"
    part.mkdir()
    (part / "manifest.json").write_text((Path(whole) / "manifest.json").read_text())
    (part / "rows-00000.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:20])  # in the middle of a batch and a line
    engine = Scripted(lm_tokenizer(path), PATTERNS)
    quiet_trainer().predict(Rollouts(str(part), Sampling(samples=4), engine=engine), problems(path))
    assert (part / "rows-00000.jsonl").read_bytes() == content
    assert engine.calls == [[3, 4, 5], [6, 7]]  # the batch that was cut is drawn as a whole


def test_what_a_server_failed_to_answer_is_asked_again(path: str, tmp_path: Path) -> None:
    whole, refined = stages(path, tmp_path / "whole")

    class Failing(Scripted):
        def generate(self, prompts: Any, sampling: Sampling, keys: Any = None) -> list[list[Completion]]:
            found = super().generate(prompts, sampling, keys)
            error = Completion("", "error", None, 0, 0)
            return [[*row[:-1], error] if key in (1, 4) else row for key, row in zip(keys, found, strict=True)]

    def answer(engine: Scripted) -> list[int]:
        folder = str(tmp_path / "again")
        quiet_trainer().predict(Rollouts(folder, Sampling(samples=4), engine=engine), problems(path))
        return [row["index"] for row in read_records(folder)]

    def refine(engine: Scripted) -> list[int]:
        folder = str(tmp_path / "refined")
        hints = HintsDataModule(rollouts=whole, template=TEMPLATE, eval_batch_size=3)
        quiet_trainer().predict(Refinement(folder, engine=engine), hints)
        return [row["index"] for row in read_records(folder)]

    failing, working = (kind(lm_tokenizer(path), PATTERNS) for kind in (Failing, Scripted))
    assert answer(failing) == [0, 2, 3, 5, 6, 7] and answer(working) == list(range(8))
    assert refine(failing) == [0, 5, 6] and refine(working) == [0, 1, 4, 5, 6]
    assert read_records(tmp_path / "again") == read_records(whole)
    assert read_records(tmp_path / "refined") == read_records(refined)


def test_heads_with_more_padding_are_cut(path: str, tmp_path: Path) -> None:
    _, refined = stages(path, tmp_path)
    batch = batch_of(refined, path)
    wide = causal(max_position_embeddings=600, vocab_size=VOCABULARY + 8)
    wide.tokenizer_path = path
    network = causal_lm(path, lora=LORA)
    terms, _ = SSBDistill(network, wide).loss_sums(batch)
    theirs = completion_logits(wide, batch, "teacher_")[:, :VOCABULARY].detach()
    expected = 4 * forward_kl(completion_logits(network, batch), theirs, temperature=2.0, reduction="sum")
    torch.testing.assert_close(terms["kd"], expected, rtol=1e-4, atol=1e-5)


def test_teachers_of_another_vocabulary_are_refused(path: str, tmp_path: Path) -> None:
    other = saved(tmp_path / "other")
    tokens = json.loads((Path(other) / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (Path(other) / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(ValueError, match="Student and teacher have different tokenizers"):
        SSBDistill(causal_lm(path, lora=LORA), causal_lm(other))
    with pytest.raises(ValueError, match=f"different tokenizers .{VOCABULARY} and 99 tokens"):
        SSBDistill(causal_lm(path, lora=LORA), causal(vocab_size=99))


def test_other_settings_do_not_mix(path: str, tmp_path: Path) -> None:
    rollouts, _ = stages(path, tmp_path)
    engine = Scripted(lm_tokenizer(path), PATTERNS)
    with pytest.raises(ValueError, match="was written with sampling .*'temperature': 1.0.* give another folder"):
        quiet_trainer().predict(Rollouts(rollouts, Sampling(samples=4, temperature=0.5), engine=engine), problems(path))


def test_both_sides_have_the_drawn_ids(path: str, tmp_path: Path) -> None:
    _, refined = stages(path, tmp_path)
    rows = {row["index"]: row for row in read_records(refined)}
    tokenizer = lm_tokenizer(path)
    data = SSBDataModule(refined=refined, tokenizer=path, batch_size=5)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    for i, number in enumerate(batch["index"].tolist()):
        for side in ("", "teacher_"):
            ids, mask = batch[f"{side}input_ids"][i], batch[f"{side}completion_mask"][i]
            assert ids[mask].tolist() == rows[number]["ids"] and ids[mask][-1] == tokenizer.convert_tokens_to_ids(
                "<|im_end|>"
            )
        prompt = tokenizer.decode(batch["input_ids"][i][~batch["completion_mask"][i]])
        assert "Right:" not in prompt and "try" not in prompt
        assert "Right: try" in tokenizer.decode(batch["teacher_input_ids"][i])
    flat = SSBDataModule(refined=refined, tokenizer=path, student_prompt="flat", include_eos=False, batch_size=5)
    flat.setup("fit")
    (batch,) = flat.train_dataloader()
    number = batch["index"][0].item()
    row = batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist()
    assert row == tokenizer(rows[number]["question"])["input_ids"] + rows[number]["ids"][:-1]


def batch_of(refined: str, path: str, **settings: Any) -> dict[str, Any]:
    data = SSBDataModule(refined=refined, tokenizer=path, batch_size=5, **settings)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    return batch


def completion_logits(network: Any, batch: dict[str, Any], side: str = "") -> torch.Tensor:
    found = network(input_ids=batch[f"{side}input_ids"], attention_mask=batch[f"{side}attention_mask"]).logits
    return found[:, :-1][batch[f"{side}completion_mask"][:, 1:]]


@pytest.mark.parametrize("teacher", ["adapter_off", "network"])
def test_loss_is_the_divergence_from_the_hinted_model(teacher: str, path: str, tmp_path: Path) -> None:
    _, refined = stages(path, tmp_path)
    batch = batch_of(refined, path)
    network, base = causal_lm(path, lora=LORA), causal_lm(path)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.5)
    module = SSBDistill(network, teacher if teacher != "network" else causal_lm(path), temperature=2.0, chunk=7)
    terms, count = module.loss_sums(batch)
    ours, theirs = completion_logits(network, batch), completion_logits(base, batch, "teacher_").detach()
    expected = 4 * forward_kl(ours, theirs, temperature=2.0, reduction="sum")
    torch.testing.assert_close(terms["kd"], expected, rtol=1e-4, atol=1e-5)
    assert count == len(ours) and expected > 0.1
    parameters = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(expected, parameters)
    terms["kd"].backward()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)
    assert not any(name.startswith("teacher") for name in module.state_dict())
    assert all("lora_" in name for name in module.state_dict() if name.startswith("student"))


def test_at_the_start_the_same_prompt_gives_exactly_zero(path: str, tmp_path: Path) -> None:
    _, refined = stages(path, tmp_path)
    batch = batch_of(refined, path)
    same = {**batch, **{f"teacher_{name}": batch[name] for name in ("input_ids", "attention_mask", "completion_mask")}}
    module = SSBDistill(causal_lm(path, lora=LORA))
    assert module.loss_sums(same)[0]["kd"] == 0
    assert module.loss_sums(batch)[0]["kd"] > 0


def test_adapter_off_leaves_the_network_as_it_was(path: str, tmp_path: Path) -> None:
    _, refined = stages(path, tmp_path)
    network = causal_lm(path, lora={**LORA, "lora_dropout": 0.5}).train()
    module = SSBDistill(network)
    module.loss_sums(batch_of(refined, path))
    assert network.training and [n for n, p in network.named_parameters() if p.requires_grad] == [
        n for n, _ in network.named_parameters() if ".lora_" in n
    ]


def test_stored_distributions(path: str, tmp_path: Path) -> None:
    _, refined = stages(path, tmp_path)
    folder = str(tmp_path / "logits")
    data = SSBDataModule(refined=refined, tokenizer=path, eval_batch_size=2)
    with pytest.warns(UserWarning, match="The top_k=8 classes hold .* keep more"):
        quiet_trainer().predict(TeacherLogits(causal_lm(path), folder, top_k=8), data)
    quiet_trainer().predict(TeacherLogits(causal_lm(path), str(tmp_path / "all"), top_k=VOCABULARY), data)
    network = causal_lm(path, lora=LORA)
    online = SSBDistill(network).loss_sums(batch_of(refined, path))[0]["kd"]
    few, every = (
        SSBDistill(network, "offline").loss_sums(batch_of(refined, path, teacher_logits=where))[0]["kd"]
        for where in (folder, str(tmp_path / "all"))
    )
    torch.testing.assert_close(every, online, rtol=1e-4, atol=1e-5)
    assert 0 < few < online
    row = read_records(folder)[0]
    logprobs, indices = read_logprobs(folder, [row["index"]])
    assert logprobs.shape == indices.shape == (row["tokens"], 8) and 0 < row["mass"] < 1


def test_stored_distributions_belong_to_their_solutions(path: str, tmp_path: Path) -> None:
    """Over two shuffled epochs with accumulation, the loss is that of the online teacher."""
    _, refined = stages(path, tmp_path)
    folder = str(tmp_path / "all")
    data = SSBDataModule(refined=refined, tokenizer=path, eval_batch_size=2)
    quiet_trainer().predict(TeacherLogits(causal_lm(path), folder, top_k=VOCABULARY), data)
    trained = []
    for teacher, settings in (("adapter_off", {}), ("offline", {"teacher_logits": folder})):
        torch.manual_seed(0)
        network = causal_lm(path, lora=LORA)
        module: Any = SSBDistill(network, teacher, lr=1e-2)  # type: ignore[arg-type]
        fit_data = SSBDataModule(refined=refined, tokenizer=path, batch_size=2, **settings)
        quiet_trainer(max_epochs=2, accumulate_grad_batches=2).fit(module, fit_data)
        trained.append([p.detach() for p in network.parameters() if p.requires_grad])
    for a, b in zip(*trained, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_plain_fine_tuning_is_one_flag(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, refined = stages(path, tmp_path)
    batch = batch_of(refined, path)
    network = causal_lm(path, lora=LORA)
    module = SSBDistill(network, kd_weight=0.0, ce_weight=1.0)
    monkeypatch.setattr(network, "disable_adapter", lambda: pytest.fail("the teacher ran"))
    terms, _ = module.loss_sums(batch)
    expected = LanguageModel(network).loss_sums(batch)[0]["ce"]
    assert terms.keys() == {"ce"}
    torch.testing.assert_close(terms["ce"], expected)


def test_right_answers_to_fine_tune_on(path: str, tmp_path: Path) -> None:
    rollouts, _ = stages(path, tmp_path)
    data = RightAnswersDataModule(rollouts=rollouts, tokenizer=path, batch_size=10)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert len(data.sets["train"][0]) == sum(pattern.count("r") for pattern in PATTERNS) == 10
    assert batch.keys() == {"input_ids", "attention_mask", "completion_mask", "index"}


def test_bad_input_says_so(path: str, tmp_path: Path) -> None:
    _, refined = stages(path, tmp_path)
    folder = str(tmp_path / "logits")
    data = SSBDataModule(refined=refined, tokenizer=path)
    quiet_trainer().predict(TeacherLogits(causal_lm(path), folder, temperature=1.0, top_k=VOCABULARY), data)
    stored = SSBDataModule(refined=refined, tokenizer=path, teacher_logits=folder)
    with pytest.raises(ValueError, match="teacher logits at temperature 1.0, not at temperature=2.0"):
        quiet_trainer(max_epochs=1).fit(SSBDistill(causal_lm(path), "offline"), stored)
    next(Path(folder).glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match="lacks 1 of 5 solutions, the first is"):
        SSBDataModule(refined=refined, tokenizer=path, teacher_logits=folder).setup("fit")
    other = SSBDataModule(refined=refined, tokenizer=path, teacher_logits=folder, include_eos=False)
    with pytest.raises(ValueError, match="written for solutions of another include_eos"):
        other.setup("fit")
    for settings, sentence in (({"teacher": "offline", "beta": 0.5}, "keeps the largest classes only"),):
        with pytest.raises(ValueError, match=sentence):
            SSBDistill(causal_lm(path, lora=LORA), **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="it has none: give lora"):
        SSBDistill(causal_lm(path))
    network = causal_lm(path)
    with pytest.raises(ValueError, match="are one object"):
        SSBDistill(network, network)


def test_solutions_of_another_network(path: str, tmp_path: Path) -> None:
    network = causal_lm(path)
    first, second = str(tmp_path / "rollouts"), str(tmp_path / "refined")
    sampling = Sampling(samples=2, max_new_tokens=3)
    quiet_trainer().predict(Rollouts(first, sampling, network=network), problems(path))
    assert "weights" in read_manifest(first)["engine"]
    as_if_answered(first)
    hints = HintsDataModule(rollouts=first, match="exact", template=TEMPLATE, eval_batch_size=3)
    quiet_trainer().predict(Refinement(second, Sampling(max_new_tokens=3), network=network, attempts=1), hints)
    as_if_accepted(second)
    data = SSBDataModule(refined=second, tokenizer=path, batch_size=4)
    quiet_trainer(max_epochs=1).fit(SSBDistill(causal_lm(path, lora=LORA)), data)
    stranger = saved(tmp_path / "stranger", causal(seed=5, max_position_embeddings=600))
    with pytest.raises(ValueError, match="were written by a network of other weights"):
        quiet_trainer(max_epochs=1).fit(SSBDistill(causal_lm(stranger, lora=LORA)), data)
    with pytest.raises(ValueError, match="were written by a network of other weights"):
        quiet_trainer().predict(TeacherLogits(causal_lm(stranger), str(tmp_path / "logits")), data)
