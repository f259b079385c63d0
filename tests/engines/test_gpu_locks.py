"""All users of a machine hold its GPUs by the same locks, made so that none can trip another."""

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from essence.engines import gpu_locks
from essence.engines.gpu_locks import OPEN_TO_ALL, SHARED, lock_folder
from essence.engines.gpu_pool import GpuPool
from essence.errors import MachineError
from support.project import PROJECT
from support.small_disk import mounted

ONE, OTHER = 65534, 65533
"""Two users without rights of root's."""
TAKING = """
import os, sys
from pathlib import Path
from essence.engines import gpu_locks
from essence.engines.gpu_pool import GpuPool
folder, user, gpus, mask = sys.argv[1:]
gpu_locks.LOCKS = Path(folder)
os.setgroups([])
os.setgid(int(user))
os.setuid(int(user))
os.umask(int(mask, 8))
for _ in sys.stdin:
    taken = GpuPool({name: f"stand-in {name}" for name in gpus.split(",")}).take(1, Path("/a"))
    print(",".join(taken.names) if taken else "none", flush=True)
"""


@pytest.fixture
def locks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files, as all users of a machine have one."""
    with tempfile.TemporaryDirectory(prefix="ess-") as name:
        folder = Path(name)
        folder.chmod(OPEN_TO_ALL)
        monkeypatch.setattr(gpu_locks, "LOCKS", folder)
        yield folder


@contextmanager
def somebody(locks: Path, user: int, gpus: str, mask: str = "077") -> Iterator[Callable[[], str]]:
    """A process of another user, which takes one more of these GPUs, and says which, each time that it is called."""
    command = [sys.executable, "-c", TAKING, str(locks), str(user), gpus, mask]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout

        def take() -> str:
            print(file=process.stdin, flush=True)
            return process.stdout.readline().strip()  # type: ignore[union-attr]

        yield take
        process.stdin.close()


def test_two_users_never_have_the_same_gpu(locks: Path) -> None:
    """Whichever came first, with whatever umask; and the second one takes over what the first one has made."""
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    with somebody(locks, ONE, "0") as one, somebody(locks, OTHER, "0,1") as other:
        assert one() == "0" and other() == "1"
        assert one() == "none" and other() == "none"
        one_s = {file.stat().st_uid for file in (locks / SHARED).iterdir() if len(file.name) == 16}
        assert one_s == {ONE, OTHER}
        with somebody(locks, ONE, "1", "022") as third:
            assert third() == "none"
    assert stat.S_IMODE((locks / SHARED).stat().st_mode) == OPEN_TO_ALL
    with somebody(locks, OTHER, "0") as other:
        assert other() == "0"
    assert not [file for file in (locks / SHARED).iterdir() if file.name.startswith(".")]
    assert [file.name for file in locks.iterdir()] == [SHARED]


def test_a_lock_is_on_a_file_of_today(locks: Path) -> None:
    """What tidies up folders of temporary files goes by their age."""
    pool = GpuPool({"0": "a"})
    for _ in range(2):
        taken = pool.take(1, Path("/a"))
        assert taken
        file = locks / SHARED / taken.locks[0]
        assert time.time() - file.stat().st_mtime < 60
        taken.leave()
        os.utime(file, (0, 0))


def test_a_lock_on_another_user_s_file_is_on_one_that_was_read_today(locks: Path) -> None:
    if os.geteuid() != 0 or os.statvfs(locks).f_flag & os.ST_NOATIME:
        pytest.skip("only root can be two users, and only some disks write down when a file was read")
    with somebody(locks, ONE, "0") as one:
        assert one() == "0"
    file = next(file for file in (locks / SHARED).iterdir() if len(file.name) == 16)
    os.utime(file, (0, 0))
    with somebody(locks, OTHER, "0") as other:
        assert other() == "0" and time.time() - file.stat().st_atime < 60


def test_a_lock_file_that_was_removed_and_made_again_is_another_one(locks: Path) -> None:
    pool = GpuPool({"0": "a"})
    taken = pool.take(1, Path("/a"))
    assert taken and pool.take(1, Path("/b")) is None
    name = taken.locks[0]
    folder = os.open(locks / SHARED, gpu_locks.FOLDER)
    held = os.open(name, gpu_locks.FILE, dir_fd=folder)
    taken.leave()
    (locks / SHARED / name).unlink()
    assert gpu_locks._lock(held, folder, name) is False
    again = pool.take(1, Path("/a"))
    assert again
    again.leave()
    os.close(held)
    os.close(folder)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_plain_file_is_neither_followed_nor_waited_for(locks: Path, kind: str) -> None:
    pool = GpuPool({"0": "a"})
    place = lock_folder().path / pool._lock_name("0")
    target = locks / "target"
    {"link": lambda: place.symlink_to(target), "pipe": lambda: os.mkfifo(place), "folder": place.mkdir}[kind]()
    with pytest.raises(MachineError, match=rf"{place}: cannot be locked \(.*\); have {place.parent} removed while"):
        pool.take(1, Path("/a"))
    assert not target.exists()


def test_what_is_in_the_place_of_one_file_leaves_the_other_gpus(locks: Path) -> None:
    """No run that has others ends by it; one that could never have enough does, by one sentence."""
    pool = GpuPool({"0": "a", "1": "b", "2": "c"})
    place = lock_folder().path / pool._lock_name("0")
    place.mkdir()
    said = f"GPUs: 0 is left out, as {place}: cannot be locked (Is a directory): have {place.parent} removed while no "
    assert pool.remark().startswith(said)
    taken = pool.take(2, Path("/a"))
    assert taken and taken.names == ("1", "2") and pool.take(1, Path("/b")) is None
    taken.leave()
    with pytest.raises(MachineError, match=rf"^{place}: cannot be locked"):
        pool.take(3, Path("/a"))
    one, two = pool.take(1, Path("/a")), pool.take(1, Path("/b"))
    assert one and two and {*one.names, *two.names} == {"1", "2"}
    one.leave()
    two.leave()


def spoil(shared: Path, how: str) -> None:
    """Put something in the place of the folder of all users."""
    if how == "link":
        (shared.parent / "elsewhere").mkdir(mode=OPEN_TO_ALL)
        shared.symlink_to(shared.parent / "elsewhere")
    elif how == "file":
        shared.write_text("")
    else:
        shared.mkdir()
        shared.chmod(int(how, 8))


@pytest.mark.parametrize(
    ("how", "why"),
    [("link", "is no folder"), ("file", "is no folder"), ("755", "has mode 755"), ("777", "has mode 777, wanted 1777")],
)
def test_where_it_cannot_be_that_of_all_a_folder_of_ones_own_is_said_and_holds(locks: Path, how: str, why: str) -> None:
    spoil(locks / SHARED, how)
    pool = GpuPool({"0": "a"})
    said = f"GPUs: a run of another user may be given the same ones, as {locks / SHARED} {why}"
    assert pool.remark().startswith(said) and pool.remark().endswith(": have it removed")
    taken = pool.take(1, Path("/a"))
    own = locks / f"{SHARED}-{os.getuid()}"
    assert taken and (own / taken.locks[0]).is_file() and stat.S_IMODE(own.stat().st_mode) == 0o700
    assert pool.take(1, Path("/b")) is None
    taken.leave()


def refusing(number: int, called: str) -> Callable[..., object]:
    """What refuses a file of this name, or part of one, as a disk does, and lets every other be."""
    real = os.open

    def refuse(path: object, *rest: int, **named: int) -> int:
        if called in str(path):
            raise OSError(number, os.strerror(number))
        return real(path, *rest, **named)  # type: ignore[arg-type]

    return refuse


CURED = {
    errno.ENOSPC: "make room in {place}",
    errno.EDQUOT: "make room in {place}",
    errno.EMFILE: "raise the limit with ulimit -n",
}


@pytest.mark.parametrize("number", [*CURED, errno.EACCES])
def test_a_folder_that_is_not_there_is_not_to_be_removed(
    locks: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_text", refuse)
    cure = CURED.get(number, "have {place} writable by all, as it usually is").format(place=locks)
    what = f"GPUs: a run of another user may be given the same ones, as {locks / SHARED} cannot be made"
    assert GpuPool({"0": "a"}).remark() == f"{what} ({os.strerror(number)}): {cure}"
    (own,) = locks.iterdir()
    assert own.name == f"{SHARED}-{os.getuid()}"
    shutil.rmtree(own)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(MachineError, match=rf"GPUs cannot be held: .*; {cure}$"):
        lock_folder()


def test_a_full_disk_for_temporary_files_is_to_have_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a folder, and no word in a file."""
    full = tmp_path / "tmp"
    with mounted(full, "size=64k,mode=1777"):
        (full / "all").write_bytes(b"1" * (64 << 10))
        monkeypatch.setattr(gpu_locks, "LOCKS", full)
        said = GpuPool({"0": "a"}).remark()
        assert said.endswith(f"{full / SHARED} cannot be made (No space left on device): make room in {full}")
        (full / "all").unlink()
        assert GpuPool({"0": "a"}).remark() == ""


@pytest.mark.parametrize("number", CURED)
def test_a_lock_file_that_cannot_be_made_names_what_lets_it_be(
    locks: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    lock_folder()
    monkeypatch.setattr(os, "open", refusing(number, f".{GpuPool({'0': 'a'})._lock_name('0')}"))
    cure = CURED[number].format(place=locks)
    with pytest.raises(MachineError, match=rf"cannot be locked \({os.strerror(number)}\); {cure}$"):
        GpuPool({"0": "a"}).take(1, Path("/a"))


def test_a_file_in_the_place_of_ones_own_folder_is_to_be_removed(locks: Path) -> None:
    spoil(locks / SHARED, "755")
    own = locks / f"{SHARED}-{os.getuid()}"
    own.write_text("")
    with pytest.raises(MachineError, match=rf"{own} cannot be made \(File exists\); have {own} removed$"):
        lock_folder()


def access(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE


def test_ones_own_file_is_open_for_writing_and_another_user_s_for_reading(
    locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS has no lock for one holder alone on what is open for reading."""
    taken = GpuPool({"0": "a"}).take(1, Path("/a"))
    assert taken and access(taken.descriptors[0]) == os.O_RDWR
    taken.leave()
    real = os.open

    def of_another(path: str, flags: int, *rest: int, **named: int) -> int:
        if path == taken.locks[0] and flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", of_another)
    again = GpuPool({"0": "a"}).take(1, Path("/a"))
    assert again and access(again.descriptors[0]) == os.O_RDONLY
    again.leave()


def test_without_gpus_nothing_is_made_and_a_right_folder_is_nothing_to_tell(locks: Path) -> None:
    assert GpuPool().remark() == "" and list(locks.iterdir()) == []
    assert GpuPool({"0": "a"}).remark() == "" and (locks / SHARED / "README").is_file()


def test_a_folder_of_ones_own_that_is_none_is_refused(locks: Path) -> None:
    spoil(locks / SHARED, "755")
    (locks / f"{SHARED}-{os.getuid()}").symlink_to(locks)
    with pytest.raises(MachineError, match="is not this user's own folder; have it removed"):
        lock_folder()


def test_a_machine_that_lets_this_user_make_neither_is_one_sentence(
    locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_locks, "LOCKS", locks / "absent")
    with pytest.raises(MachineError, match=r"GPUs cannot be held: .* cannot be made \(No such file .*\), and"):
        lock_folder()
