import os
from pathlib import Path

import pytest

from lit_kd.language.records import Records, check_manifest, read_manifest, read_records


def test_rows_come_back_in_order_from_all_processes(tmp_path: Path) -> None:
    first, second = (Records(tmp_path, {"seed": (1, 2)}, rank) for rank in (0, 1))
    first.append([{"index": 4, "text": "ü\n\u2028x"}, {"index": 0}])
    second.append([{"index": 1}])
    assert read_records(tmp_path) == [{"index": 0}, {"index": 1}, {"index": 4, "text": "ü\n\u2028x"}]
    assert Records(tmp_path, {"seed": (1, 2)}).done == {0, 1, 4}
    assert read_manifest(tmp_path) == {"seed": [1, 2]}


def test_nothing_is_written_twice(tmp_path: Path) -> None:
    Records(tmp_path, {}, 0).append([{"index": 1, "text": "a"}])
    Records(tmp_path, {}, 1).append([{"index": 1, "text": "b"}, {"index": 2, "text": "c"}])
    assert [row["text"] for row in read_records(tmp_path)] == ["a", "c"]
    assert len((tmp_path / "rows-00001.jsonl").read_text().splitlines()) == 1


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    Records(tmp_path, {}).append([{"index": 0}, {"index": 1}])
    file = tmp_path / "rows-00000.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    assert [row["index"] for row in read_records(tmp_path)] == [0]
    again = Records(tmp_path, {})
    assert again.done == {0}
    again.append([{"index": 1}])
    assert file.read_bytes() == whole


def test_bad_folders_say_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no manifest.json: give the folder that the stage before"):
        read_records(tmp_path)
    Records(tmp_path, {"model": "a", "seed": 0})
    with pytest.raises(ValueError, match="holds no row yet"):
        read_records(tmp_path)
    with pytest.raises(ValueError, match="was written with seed 0, not 1: give another folder"):
        Records(tmp_path, {"model": "a", "seed": 1})
    with pytest.raises(ValueError, match="was written with tokens None, not 3"):
        check_manifest(tmp_path, {"tokens": 3})
    assert not [name for name in os.listdir(tmp_path) if "tmp" in name]
