"""Feature files whose writer is killed, refused or out of room: no record is lost, none stands under another's name."""

import errno
import os
import resource
import shutil
import signal
import sys

import numpy as np
import pytest

from captioning.errors import UserError
from captioning.features import partial
from captioning.features.factory import open_features
from captioning.features.handles import forget
from captioning.features.lmdb_file import SharedLmdbFile
from captioning.features.partial import discard_partial, is_unfinished
from captioning.features.writer import FeatureWriter

NAMES = ["x.npy", "x.lmdb", "x.bin", "x.h5"]
KEYS = [f"image {n}" for n in range(6)]
OLD, NEW = {"extractor": "old"}, {"extractor": "new"}
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.chmod"}


def rows(keys: list[str]) -> np.ndarray:
    return np.array([[int(key.split()[1]), 7, 9] for key in keys], np.float32)


def write(path, keys=KEYS, provenance=NEW, resume=False, after_open=lambda: None) -> None:
    with FeatureWriter(path, (3,), provenance=provenance, keys=keys, resume=resume) as writer:
        after_open()
        for key in writer.todo:
            writer.write(key, rows([key])[0])


def killed_before(number: int, work) -> bool:
    """Run `work(arm)` in a process that is killed before its `number`-th change of files once it has called arm().

    Gives whether it came to that; otherwise it has ended well.
    """
    child = os.fork()
    if not child:
        left, armed = number, False

        def hook(event: str, arguments) -> None:
            nonlocal left
            if armed and event in CHANGES:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        def arm() -> None:
            nonlocal armed
            armed = True

        status = 1
        try:
            sys.addaudithook(hook)
            work(arm)
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def check_either(path) -> None:
    """The file is the old one or the new one, or says what to do."""
    assert path.exists()
    forget(path)
    try:
        reader = open_features(path)
    except UserError as error:
        assert "--resume" in str(error)
        return
    keys = KEYS if reader.provenance == NEW else KEYS[::-1]
    assert list(reader.keys()) == (sorted(KEYS) if path.suffix == ".lmdb" else keys)
    assert np.array_equal(reader.get_many(keys), rows(keys))


@pytest.mark.parametrize("name", ["x.npy", "x.lmdb", "x.h5"])  # x.bin is written as x.npy is
def test_killed_anywhere_while_it_is_put_in_place(tmp_path, name):
    path, number, beside = tmp_path / name, 0, [] if name == "x.lmdb" else ["x.json", "x.keys.txt"]
    again = True
    while again:
        write(path, KEYS[::-1], OLD)
        again = killed_before(number, lambda arm: write(path, after_open=arm))
        check_either(path)
        with FeatureWriter(path, (3,), provenance=NEW, keys=KEYS, resume=True) as writer:
            # lmdb's records go to the disk by batches, so those of this small file at the end alone
            assert len(writer) >= (len(KEYS) if again and number > 4 and name != "x.lmdb" else 0)
            for key in writer.todo:
                writer.write(key, rows([key])[0])
        forget(path)
        reader = open_features(path)
        assert reader.provenance == NEW and np.array_equal(reader.get_many(KEYS), rows(KEYS))
        assert sorted(os.listdir(tmp_path)) == sorted([name, *beside])
        number += 1
    assert number > 8


@pytest.mark.parametrize("name", ["x.npy", "x.lmdb"])
def test_killed_anywhere_while_it_is_resumed(tmp_path, name):
    path, number = tmp_path / name, 0
    again = True
    while again:
        with pytest.raises(KeyboardInterrupt), FeatureWriter(path, (3,), provenance=NEW, keys=KEYS) as writer:
            for key in KEYS[:4]:
                writer.write(key, rows([key])[0])
            raise KeyboardInterrupt

        def resumed(arm) -> None:
            arm()
            write(path, resume=True)

        again = killed_before(number, resumed)
        with FeatureWriter(path, (3,), provenance=NEW, keys=KEYS, resume=True) as writer:
            assert len(writer) >= 4
            for key in writer.todo:
                writer.write(key, rows([key])[0])
        forget(path)
        assert np.array_equal(open_features(path).get_many(KEYS), rows(KEYS))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        number += 1


@pytest.mark.parametrize("name", NAMES)
def test_records_of_an_interrupted_run_are_in_the_way_until_somebody_says_so(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(KeyboardInterrupt), FeatureWriter(path, (3,), keys=KEYS) as writer:
        writer.write(KEYS[0], [0, 7, 9])
        raise KeyboardInterrupt
    assert is_unfinished(path)
    with pytest.raises(UserError, match="x.*partial holds records of an interrupted run: add --resume .* or --force"):
        FeatureWriter(path, (3,), keys=KEYS)
    discard_partial(path)
    assert not os.listdir(tmp_path)
    write(path)
    assert np.array_equal(open_features(path).get_many(KEYS), rows(KEYS))


def test_a_run_without_records_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), FeatureWriter(tmp_path / "x.npy", (3,)):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="float32 only"):
        FeatureWriter(tmp_path / "x.bin", (3,), "float16")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("resume", [False, True])
def test_a_second_writer_is_refused(tmp_path, name, resume):
    path = tmp_path / name

    def second() -> None:
        child = os.fork()
        if not child:
            try:
                write(path, resume=resume)
            except UserError as error:
                os._exit(3 if "another process is at work on feature file" in str(error) else 4)
            os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3

    write(path, after_open=second)
    assert np.array_equal(open_features(path).get_many(KEYS), rows(KEYS))


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_keeps_the_records_and_the_old_file(tmp_path, name):
    """A limit on the size of files stands for it."""
    path = tmp_path / name
    write(path, KEYS[::-1], OLD)
    wide, size = [f"wide {n}" for n in range(200)], 100
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def run() -> None:
        with FeatureWriter(path, (size,), provenance=NEW, keys=wide) as writer:
            writer.store.batch_bytes = 8000
            for number, key in enumerate(wide):
                if number == 50:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limit[1]))
                writer.write(key, np.ones(size))

    try:
        with pytest.raises(UserError, match="cannot write feature file .*x"):
            run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    check_either(path)
    assert open_features(path).provenance == OLD
    with FeatureWriter(path, (size,), provenance=NEW, keys=wide, resume=True) as writer:
        assert len(writer) >= 40
        for key in writer.todo:
            writer.write(key, np.ones(size))
    assert open_features(path).get_many(wide).sum() == 200 * size


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_is_full_at_the_end(tmp_path, name, monkeypatch):
    path = tmp_path / name
    write(path, KEYS[::-1], OLD)

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left on device"):
        write(path, after_open=lambda: patch.setattr(partial, "atomic_write", full))
    check_either(path)
    assert open_features(path).provenance == OLD
    with FeatureWriter(path, (3,), provenance=NEW, keys=KEYS, resume=True) as writer:
        assert not writer.todo
    check_either(path)
    assert open_features(path).provenance == NEW


def test_what_is_no_plain_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "folder.npy").mkdir()
    for path in (tmp_path / "pipe.npy", tmp_path / "folder.npy", tmp_path / "folder.npy/../pipe.npy"):
        with pytest.raises(UserError, match="is not a plain file"):
            FeatureWriter(path, (3,))


@pytest.mark.parametrize("name", NAMES)
def test_a_link_stays_a_link(tmp_path, name):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / name, KEYS[::-1], OLD)
    for entry in os.listdir(tmp_path / "data"):
        (tmp_path / entry).symlink_to(tmp_path / "data" / entry)
    write(tmp_path / name)
    assert all((tmp_path / entry).is_symlink() for entry in os.listdir(tmp_path) if entry != "data")
    for path in (tmp_path / name, tmp_path / "data" / name):
        reader = open_features(path)
        assert reader.provenance == NEW and np.array_equal(reader.get_many(KEYS), rows(KEYS))


def test_lmdb_whose_making_was_cut_off_is_made_again(tmp_path):
    """As a full disk leaves it: lmdb itself would refuse the short file for ever."""
    shared = SharedLmdbFile(tmp_path / "x.lmdb", (3,), np.dtype("<f4"), NEW)
    (tmp_path / "x.lmdb").mkdir()
    (tmp_path / "x.lmdb/data.mdb").write_bytes(b"\0" * 4096)
    assert shared.missing(KEYS) == KEYS
    shared.add(dict(zip(KEYS, rows(KEYS))))
    assert np.array_equal(open_features(tmp_path / "x.lmdb").get_many(KEYS), rows(KEYS))
    with (
        pytest.raises(KeyboardInterrupt),
        FeatureWriter(tmp_path / "y.lmdb", (3,), provenance=NEW, keys=KEYS) as writer,
    ):
        writer.write(KEYS[0], rows(KEYS)[0])
        raise KeyboardInterrupt
    os.truncate(tmp_path / "y.lmdb.partial/lmdb/data.mdb", 4096)
    write(tmp_path / "y.lmdb", resume=True)
    assert np.array_equal(open_features(tmp_path / "y.lmdb").get_many(KEYS), rows(KEYS))


def test_room_for_the_lock_file_that_lmdb_maps_is_reserved(tmp_path):
    SharedLmdbFile(tmp_path / "x.lmdb", (3,), np.dtype("<f4"), NEW).add(dict(zip(KEYS, rows(KEYS))))
    found = os.stat(tmp_path / "x.lmdb/lock.mdb")
    assert found.st_blocks * 512 >= found.st_size > 0
