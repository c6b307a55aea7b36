from pathlib import Path

from lit_kd.models.fingerprint import saved_fingerprint


def test_every_shard_counts(tmp_path: Path) -> None:
    assert saved_fingerprint(str(tmp_path)) is None
    first, second = tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model-00002-of-00002.safetensors"
    first.write_bytes(b"a" * (3 << 20))
    alone = saved_fingerprint(str(tmp_path))
    second.write_bytes(b"b")
    both = saved_fingerprint(str(tmp_path))
    second.write_bytes(b"c")
    assert len({alone, both, saved_fingerprint(str(tmp_path))}) == 3
    second.write_bytes(b"b")
    assert saved_fingerprint(str(tmp_path)) == both
