"""A text encoder of Hugging Face's distilled by MiniLMv2 into a folder with a model card, and pushed to the hub.

Offline by default: a tiny random teacher and generated sentences. With names of yours:

python examples/hugging_face.py
python examples/hugging_face.py --teacher sentence-transformers/all-MiniLM-L6-v2 --texts my.txt --push_to me/mine

The token to push with comes from the environment (HF_TOKEN) or from `hf auth login`.
"""

import argparse
import random
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from lit_kd import MiniLMDistill, TextCorpusDataModule, text_encoder
from lit_kd.callbacks import ExportStudent

WORDS = ["a", "the", "old", "young", "tall", "man", "dog", "bird", "horse", "sees", "hears", "likes", "near", "behind"]
SETTINGS = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


def tiny_teacher(folder: Path) -> str:
    """A random BERT and its tokenizer, written to a folder: what a hub name would be."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192}
    BertModel(BertConfig(vocab_size=len(tokenizer), initializer_range=0.2, **sizes)).save_pretrained(folder)
    return str(folder)


def sentences(path: Path, number: int = 800) -> str:
    """A file of generated sentences."""
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(6, 14))) for _ in range(number)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def main(arguments: argparse.Namespace) -> None:
    """Distil, export, load with transformers, push."""
    seed_everything(0, verbose=False)
    folder: Path = arguments.folder
    path = arguments.teacher or tiny_teacher(folder / "teacher")
    teacher = text_encoder(path)
    if arguments.student:
        student = text_encoder(arguments.student)
    else:  # half as wide and half as deep
        width, depth = teacher.config.hidden_size // 2, teacher.config.num_hidden_layers // 2
        config = {"hidden_size": width, "num_hidden_layers": depth, "intermediate_size": 4 * width}
        student = text_encoder(path, init="random", config=config)
    texts = arguments.texts or sentences(folder / "texts.txt")
    data = TextCorpusDataModule(tokenizer=path, files=texts, max_length=64, batch_size=16, val_fraction=0.2)

    module = MiniLMDistill(student, teacher, heads=12, lr=1e-3, warmup_steps=10)
    export = ExportStudent(str(folder / "student"), license=arguments.license)
    trainer = Trainer(max_epochs=arguments.epochs, enable_model_summary=False, callbacks=[export], **SETTINGS)
    before = Trainer(**SETTINGS).validate(module, datamodule=data, verbose=False)[0]["val/loss"]
    trainer.fit(module, datamodule=data)
    after = trainer.callback_metrics["val/loss"].item()
    print(f"held-out loss of the relations (nats): {before:.3f} before, {after:.3f} after")

    loaded = AutoModel.from_pretrained(folder / "student")
    tokens = AutoTokenizer.from_pretrained(folder / "student")("the old dog sees a bird", return_tensors="pt")
    parts = [sum(p.numel() for p in network.parameters()) for network in (teacher, loaded)]
    print(f"teacher {parts[0]:,} parameters, student {parts[1]:,}: {folder / 'student'}")
    print(f"states of a sentence: {tuple(loaded(**tokens).last_hidden_state.shape)}")

    if arguments.push_to:
        from huggingface_hub import HfApi

        hub = HfApi()
        hub.create_repo(arguments.push_to, private=True, exist_ok=True)
        print(hub.upload_folder(repo_id=arguments.push_to, folder_path=folder / "student"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", help="folder or name on the hub; default: a tiny one, made here")
    parser.add_argument("--student", help="likewise, to start from; default: half the teacher's size, at random")
    parser.add_argument("--texts", help="text file, a document a line; default: generated sentences")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/hugging_face"))
    parser.add_argument("--license", help="of the student, for its card, such as apache-2.0")
    parser.add_argument("--push_to", metavar="USER/NAME", help="upload the student, as a private repository")
    main(parser.parse_args())
