"""Plain texts for task-agnostic distillation: files, JSONL, or any set of `datasets`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from lit_kd.datamodules.loading import ResumableLoader, limited, rank_and_world, refuse_overfit
from lit_kd.datamodules.text import Split, TextDataModule, TokenSet
from lit_kd.datamodules.text_stream import StreamLoader, TextStream
from lit_kd.files import replacing
from lit_kd.language.documents import Documents, DocumentTokens, tokenise, tokenizer_fingerprint
from lit_kd.language.tokens import TokenRows, special_frame

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextCorpusDataModule(TextDataModule):
    """Texts as BERT reads them: special tokens around `max_length` tokens of text, without targets.

    A document is a line of a plain text file, the entry `text_column` of a line of a `.jsonl` file, or of a row of
    `datasets`; blank ones are left out. `packing`: documents follow each other, a separator between them, and are cut
    into rows of full length, so that nothing is padded; what is left at the end is a shorter row. Otherwise a row holds
    one document, and long ones are cut into several rows. No token is lost either way. Validation is rows held out by
    `val_fraction`, or nothing; test and prediction are all rows.

    With `streaming`, texts are read and tokenised while training, again and again. Documents come in the files' order:
    shuffle the files, not the loader. Each rank and loader process reads every n-th document and packs its own, `index`
    is the number of the document in which a row begins, and an epoch has `samples_per_epoch` rows or, without it, is
    the run: the Trainer's `max_steps`. A resume in mid-epoch skips what was read without tokenising it and equals the
    straight run bit for bit if ranks and processes are as many as before; with other numbers it goes on from the
    earliest document that any of them was at, so that some texts come twice in that pass.
    """

    validates_on_test = False

    def __init__(
        self,
        *,
        tokenizer: str,
        files: list[str] | str | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        text_column: str = "text",
        max_length: int = 512,
        packing: bool = True,
        streaming: bool = False,
        cache_dir: str | Path | None = None,
        **settings: Any,
    ) -> None:
        """Check the arguments; texts are read in `setup`.

        Args:
            tokenizer: Folder or hub name of a model whose fast tokenizer it is.
            files: Text and `.jsonl` files, UTF-8.
            dataset: Name or folder for `datasets.load_dataset`, whose split `train` is read.
            dataset_config: Its configuration.
            text_column: Where the text is in `.jsonl` files and in `datasets`.
            max_length: Tokens of a row, special ones included.
            packing: Join documents to full rows.
            streaming: Read while training.
            cache_dir: Folder for token ids, int32, by the contents of texts and tokenizer: once a node the texts are
                tokenised, and read from there by all ranks and later runs. None: every rank tokenises in `setup`.
            **settings: Arguments of `TextDataModule`.

        Raises:
            ValueError: As `TextDataModule`; not exactly one of `files` and `dataset`; what `streaming` excludes; in
                `setup`, no text at all, none in that column, or a `max_length` without room.
            FileNotFoundError: In `setup`, a file is missing.
        """
        cache_dir = None if cache_dir is None else str(cache_dir)  # plain in the checkpoint: weights_only refuses paths
        super().__init__(tokenizer=tokenizer, max_length=max_length, **settings)
        files = [files] if isinstance(files, str) else list(files or [])
        if bool(files) == (dataset is not None):
            raise ValueError(f"files={files} and dataset={dataset!r}: give one of them, the texts come from there.")
        chosen = self.val_fraction or self.train_fraction < 1 or self.train_samples
        if streaming and (chosen or cache_dir):
            raise ValueError(
                "streaming=True neither counts the texts nor keeps them: leave out train_fraction, train_samples, "
                "val_fraction and cache_dir."
            )
        self.source_documents = Documents(tuple(files), dataset, dataset_config, text_column, streaming)
        self.packing = packing
        self.streaming = streaming
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self._stream: TextStream | None = None

    def documents(self) -> Iterator[str]:
        """All documents in their order, blank ones left out."""
        return (text for _, text in self.source_documents.read())

    def prepare_data(self) -> None:
        """Tokenise once a node, if there is a folder to keep it in."""
        if self.cache_dir is not None:
            self._tokens(self.tokenizer())

    def setup(self, stage: str) -> None:
        """Read all texts, or see that there are some."""
        if not self.streaming:
            super().setup(stage)
            return
        if stage in ("test", "predict"):
            raise ValueError(f"streaming=True is for training, not for {stage}: leave it out.")
        if next(self.documents(), None) is None:
            raise ValueError(self._no_text())
        tokenizer = self.tokenizer()
        padding, room = self.padding(tokenizer), self._room(tokenizer)
        self._stream = TextStream(self.source_documents, tokenizer, padding, room, self.batch_size, self.packing)

    def load(self, split: Split) -> list[TokenSet]:
        """All rows, for any split."""
        return [self._rows]

    @cached_property
    def _rows(self) -> TokenSet:
        tokenizer = self.tokenizer()
        before, after = special_frame(tokenizer)
        tokens = self._tokens(tokenizer)
        if not len(tokens.ids):
            raise ValueError(self._no_text())
        room = self._room(tokenizer)
        bounds = tokens.packed(room) if self.packing else tokens.apart(room)
        return TokenSet(TokenRows(tokens.ids, bounds, before=before, after=after), self.padding(tokenizer))

    def _tokens(self, tokenizer: PreTrainedTokenizerBase) -> DocumentTokens:
        if self.cache_dir is None:
            return tokenise(tokenizer, self.documents())
        key = hashlib.sha256((self.source_documents.fingerprint() + tokenizer_fingerprint(tokenizer)).encode())
        file = self.cache_dir / f"{key.hexdigest()[:16]}.safetensors"
        if not file.is_file():
            made = tokenise(tokenizer, self.documents())
            with replacing(file) as temporary:
                save_file({"ids": made.ids, "ends": made.ends}, temporary)
        return DocumentTokens(**load_file(file))

    def _room(self, tokenizer: PreTrainedTokenizerBase) -> int:
        special = sum(map(len, special_frame(tokenizer)))
        if self.max_length <= special:
            raise ValueError(f"max_length={self.max_length} leaves no token beside {special} special ones: raise it.")
        return self.max_length - special

    def _no_text(self) -> str:
        documents = self.source_documents
        where = documents.dataset or ", ".join(documents.files)
        return f"There is no text in {where}: give files with a document a line, or another dataset."

    def train_dataloader(self) -> ResumableLoader | StreamLoader:  # type: ignore[override]
        """Full batches of rows."""
        if not self.streaming:
            return super().train_dataloader()
        if self._stream is None:
            raise RuntimeError("The train set is not there yet: call setup('fit').")
        refuse_overfit(self.trainer)
        length = self._stream_length()
        loader = StreamLoader(self._stream, self.num_workers, self.seed, length)
        loader.limit = None if length is None else limited(length, self.trainer)
        return loader

    def _stream_length(self) -> int | None:
        if self.samples_per_epoch:
            return math.ceil(self.samples_per_epoch / (self.batch_size * rank_and_world()[1]))
        if self.trainer is None:
            return None
        if self.trainer.max_steps > 0:
            return self.trainer.max_steps * self.trainer.accumulate_grad_batches
        raise ValueError("streaming=True has no end of its own: set the Trainer's max_steps, or samples_per_epoch.")

    def __str__(self) -> str:
        """Lightning's would count the stream's batches."""
        return repr(self) if self.streaming else super().__str__()
