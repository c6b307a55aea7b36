"""Files that are whole or absent, and where those of Hugging Face's are."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, ulimit


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Within it a full disk is one sentence, whichever library wrote.

    Raises:
        OSError: no space is left for ``path``.
    """
    try:
        yield
    except Exception as error:
        number = _full(error)
        if number is None:
            raise
        folder = Path(path).absolute().parent
        raise OSError(
            number, f"No space is left to write {Path(path).name}: free some in {folder} and start again"
        ) from error


def _full(error: BaseException | None) -> int | None:
    """The number of the error that says that the disk is full, in an exception or what it came from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error.errno
        for number in FULL:
            if f"os error {number})" in str(error):  # safetensors says it so
                return number
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed to ``path`` at the end, removed after an exception.

    It is on the disk before it is renamed, so that a node which fails, or a server that finds itself full late, leaves
    the older file.

    Raises:
        OSError: no space is left; see :func:`writing`.

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
        with writing(path):
            yield temporary
            _to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def filling(folder: str | Path) -> Iterator[Path]:
    """A temporary folder within ``folder``, whose files move there at the end; after an exception none does.

    Raises:
        OSError: no space is left; see :func:`writing`.

    Example:
        >>> with filling("model") as temporary:
        ...     _ = (temporary / "config.json").write_text("{}")
        >>> [file.name for file in Path("model").iterdir()]
        ['config.json']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".tmp", dir=folder) as temporary, writing(folder / "*"):
        yield Path(temporary)
        for file in Path(temporary).iterdir():
            _to_disk(file)
            file.replace(folder / file.name)


def _to_disk(file: Path) -> None:
    if file.is_file():
        file.chmod(_usual_mode())  # safetensors makes files that nobody else can read
        with file.open("r+b") as opened:
            os.fsync(opened.fileno())


def _usual_mode() -> int:
    mask = os.umask(0o077)  # it can't be asked for without being set
    os.umask(mask)
    return 0o666 & ~mask


def pretrained_at(path: str | Path) -> dict[str, str]:
    """What transformers' ``from_pretrained`` takes for a folder, a name on the hub, or one .gguf file.

    Example:
        >>> pretrained_at("models/tiny.gguf")
        {'pretrained_model_name_or_path': 'models', 'gguf_file': 'tiny.gguf'}
    """
    if str(path).endswith(".gguf"):
        return {"pretrained_model_name_or_path": str(Path(path).parent), "gguf_file": Path(path).name}
    return {"pretrained_model_name_or_path": str(path)}
