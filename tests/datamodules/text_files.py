"""Tokenizers of single characters, and tiny files in the real formats."""

import json
import string
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

TSV = {
    "cola": 'gj04\t1\t\tA fine one.\ngj04\t0\t*\tone "fine a.\n',
    "sst2": "sentence\tlabel\ngood film \t1\nbad film \t0\n",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tHe ran .\tHe did run .\n0\t3\t4\tA .\tB .\n",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tWhat?\tWhich?\t0\n1\t3\t4\tHow?\tHow?\t1\n",
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    "0\tm\tf\t2012\t1\tn\tn\tA plane.\tAn air plane.\t5.000\n1\tm\tf\t2012\t4\tn\tn\tA man.\tA dog.\t0.5\n",
    "mnli": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
    "0\t1\t1e\tg\t(\t(\t(\t(\tIt is.\tIt was.\tneutral\tneutral\n"
    "1\t2\t2e\tg\t(\t(\t(\t(\tYes.\tNo.\tcontradiction\tcontradiction\n",
    "qnli": "index\tquestion\tsentence\tlabel\n0\tWho?\tHe.\tentailment\n1\tWhat?\tHere.\tnot_entailment\n",
    "rte": "index\tsentence1\tsentence2\tlabel\n0\tA b.\tB.\tnot_entailment\n1\tA.\tA.\tentailment\n",
    "wnli": "index\tsentence1\tsentence2\tlabel\n0\tIt.\tHe.\t1\n1\tIt.\tShe.\t0\n",
}
LABELS = {
    "cola": [1, 0],
    "sst2": [1, 0],
    "mrpc": [1, 0],
    "qqp": [0, 1],
    "stsb": [5.0, 0.5],
    "mnli": [1, 2],
    "qnli": [0, 1],
    "rte": [1, 0],
    "wnli": [1, 0],
}


def tokenizer(folder: Path, **changes: Any) -> str:
    """A fast WordPiece tokenizer that knows ASCII's characters alone."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [c for c in string.printable if not c.isspace() and not c.isupper()]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt"), **changes).save_pretrained(folder)
    return str(folder)


def squad(path: Path, version: str = "2.0", count: int = 3) -> str:
    """Questions about a text of numbered words; of version 2.0 every third has no answer."""
    context = " ".join(f"w{i}" for i in range(40))
    questions: list[dict[str, Any]] = []
    for i in range(count):
        answers = [{"text": f"w{i + 2}", "answer_start": context.index(f"w{i + 2} ")}]
        question: dict[str, Any] = {"id": f"q{i}", "question": f"  Which is {i}?", "answers": answers}
        if version == "2.0":
            question["is_impossible"] = i % 3 == 2
            question["answers"] = [] if i % 3 == 2 else answers
        questions.append(question)
    article = {"title": "t", "paragraphs": [{"context": context, "qas": questions}]}
    path.write_text(json.dumps({"version": version, "data": [article]}))
    return str(path)


def byte_tokenizer(folder: Path, **changes: Any) -> str:
    """A fast tokenizer of single bytes with RoBERTa's special tokens and no token types."""
    names = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    special = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    names_of_inputs = ["input_ids", "attention_mask"]
    settings = {"model_input_names": names_of_inputs, "unk_token": "<unk>", **special, **changes}
    PreTrainedTokenizerFast(tokenizer_object=raw, **settings).save_pretrained(folder)
    return str(folder)
