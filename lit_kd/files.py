"""Files that are whole or absent, and where those of Hugging Face's are."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed to ``path`` at the end, removed after an exception.

    Example:
        >>> with replacing("notes.txt") as temporary:
        ...     _ = temporary.write_text("done")
        >>> Path("notes.txt").read_text()
        'done'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def pretrained_at(path: str | Path) -> dict[str, str]:
    """What transformers' ``from_pretrained`` takes for a folder, a name on the hub, or one .gguf file.

    Example:
        >>> pretrained_at("models/tiny.gguf")
        {'pretrained_model_name_or_path': 'models', 'gguf_file': 'tiny.gguf'}
    """
    if str(path).endswith(".gguf"):
        return {"pretrained_model_name_or_path": str(Path(path).parent), "gguf_file": Path(path).name}
    return {"pretrained_model_name_or_path": str(path)}
