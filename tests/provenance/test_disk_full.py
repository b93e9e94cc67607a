"""A full disk: the kernel's own error (/dev/full), a library's, and too little room known beforehand."""

import errno
import shutil
from pathlib import Path

import pytest

from mtkv.provenance.files import DiskFullError, atomic_path, check_room, write_text

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
def test_a_full_disk_leaves_the_old_file_and_nothing_partial(tmp_path):
    target = tmp_path / "out" / "file.bin"
    write_text(target, "old")

    def overwrite():
        with atomic_path(target, needed=7) as temporary:
            temporary.symlink_to(FULL)
            temporary.write_bytes(b"new and longer" * 10_000)

    with pytest.raises(DiskFullError) as caught:
        overwrite()
    assert caught.value.errno == errno.ENOSPC
    assert str(target) in str(caught.value)
    assert "7 bytes are needed" in str(caught.value)
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]
    assert target.read_text() == "old"


@pytest.mark.parametrize("text", ["No space left on device (os error 28)", "[Errno 28] Error: No space left on device"])
def test_a_librarys_own_words_count_and_a_half_written_folder_goes(tmp_path, text):
    """safetensors raises no OSError."""
    target = tmp_path / "model"

    def save():
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / "part").write_bytes(b"x" * 100)
            raise RuntimeError(text)

    with pytest.raises(DiskFullError, match=r"no space left.*bytes are free.*model"):
        save()
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError), atomic_path(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "not allowed")


def test_too_little_room_is_said_before_anything_is_written(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(DiskFullError, match=r"[\d,]+ bytes are needed, [\d,]+ bytes are free"):
        check_room(tmp_path / "x", 2 * free)
    with pytest.raises(DiskFullError), atomic_path(tmp_path / "x", needed=2 * free):
        pytest.fail("the block must not run")
    check_room(tmp_path / "x", free // 2)
