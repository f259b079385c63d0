"""Lock files of a machine's GPUs, in one folder for all its users: `/tmp/essence-gpus`.

Whoever needs the folder first makes it as `/tmp` itself is (mode 1777): all may add files, and none but the owner of a
file or of the folder may remove it. A GPU whose file is removed while it is held can be given again. A lock is on an
open file (flock), for which reading it suffices on a local disk, so that a file of another user serves as well as one's
own. Nothing that another user may have put there is followed (a link) or waited for (a pipe).

Where the folder cannot be like that, one of this user alone takes its place, and two users may be given the same GPU.
"""

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from essence.errors import CURES, MachineError

LOCKS = Path("/tmp")  # noqa: S108  the same for all shells and users: TMPDIR differs between them
SHARED = "essence-gpus"
OPEN_TO_ALL = 0o1777
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_CREAT: a kernel may refuse that for another user's file in such a folder (fs.protected_regular).
FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
READ_BY_ALL = 0o644
README = (
    "Each file is a GPU of this machine; a run of essence, whoever it is of, locks it while it uses the GPU.\n"
    "Do not remove this folder, or a file in it, while any user's run uses a GPU.\n"
)
FULL = (errno.ENOSPC, errno.EDQUOT)
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True)
class LockFolder:
    """Where the lock files lie."""

    path: Path
    alone: MachineError | None = None
    """Why it is this user's alone, and what cures that; None where it is that of all users."""

    def lock(self, name: str) -> int | None:
        """An open, locked file; None where somebody else has it.

        Raises:
            MachineError: it is no plain file that this user may read, or the disk has no locks.
        """
        try:
            folder = os.open(self.path, FOLDER)
            try:
                return _locked(folder, name)
            finally:
                os.close(folder)
        except OSError as error:
            removed = f"have {self.path} removed while no run uses GPUs; {self.path.parent} must be a local disk"
            what = f"{self.path / name}: cannot be locked ({error.strerror})"
            raise MachineError(what, _cure(error, self.path.parent, removed)) from None


def lock_folder() -> LockFolder:
    """That of all users of this machine, made where it is not there; else one of this user.

    Raises:
        MachineError: there is neither.
    """
    shared = LOCKS / SHARED
    if (unfit := _unfit(shared)) is None:
        return LockFolder(shared)
    own = LOCKS / f"{SHARED}-{os.getuid()}"
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
    except OSError as error:
        what = f"GPUs cannot be held: {unfit.problem}, and {own} cannot be made ({error.strerror})"
        raise MachineError(what, _cure_of_making(error, own)) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise MachineError(f"{own}: is not this user's own folder", "have it removed")
    return LockFolder(own, unfit)


def _cure(error: OSError, place: Path, otherwise: str) -> str:
    """What lets a file or folder in this place be made or opened that could not be."""
    if error.errno in FULL:
        return f"make room in {place}"
    return CURES[error.errno] if error.errno in TOO_MANY_FILES else otherwise


def _cure_of_making(error: OSError, folder: Path) -> str:
    if os.path.lexists(folder):
        return _cure(error, folder.parent, f"have {folder} removed")
    return _cure(error, folder.parent, f"have {folder.parent} writable by all, as it usually is")


def _unfit(shared: Path) -> MachineError | None:
    """Why a folder cannot hold the locks of all users; None where it can."""
    try:
        _make_folder(shared)
        found = shared.lstat()
    except OSError as error:
        return MachineError(f"{shared} cannot be made ({error.strerror})", _cure_of_making(error, shared))
    if not stat.S_ISDIR(found.st_mode):
        return MachineError(f"{shared} is no folder", "have it removed")
    mode = stat.S_IMODE(found.st_mode)
    if mode & OPEN_TO_ALL == OPEN_TO_ALL:
        return None
    return MachineError(f"{shared} has mode {mode:o}, wanted {OPEN_TO_ALL:o}", "have it removed")


def _make_folder(shared: Path) -> None:
    """Make it whole: nobody sees it before all may use it. One that is there is left as it is."""
    if os.path.lexists(shared):
        return
    made = Path(tempfile.mkdtemp(prefix=f"{SHARED}-", dir=shared.parent))
    try:
        # Something is in it, so that no other new one can take its place.
        (made / "README").write_text(README, encoding="utf-8")
        (made / "README").chmod(READ_BY_ALL)
        made.chmod(OPEN_TO_ALL)
        made.rename(shared)
    except OSError:
        (made / "README").unlink(missing_ok=True)
        made.rmdir()
        # Somebody else was as quick.
        if not os.path.lexists(shared):
            raise


def _locked(folder: int, name: str) -> int | None:
    """As `LockFolder.lock`, in an open folder; OSError."""
    descriptor = _opened(folder, name)
    try:
        if _lock(descriptor, folder, name):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _opened(folder: int, name: str) -> int:
    """The file of that name, which is made where it is absent."""
    try:
        return _open(folder, name)
    except FileNotFoundError:
        _make_file(folder, name)
    return _open(folder, name)


def _open(folder: int, name: str) -> int:
    """For writing where that is allowed, as for one's own: NFS locks no file that is open for reading alone."""
    try:
        return os.open(name, FILE | os.O_RDWR, dir_fd=folder)
    except PermissionError:
        return os.open(name, FILE | os.O_RDONLY, dir_fd=folder)


def _make_file(folder: int, name: str) -> None:
    """Nobody sees it before all may read it, whatever the umask is."""
    new = f".{name}-{uuid.uuid4().hex}"
    descriptor = os.open(new, NEW, READ_BY_ALL, dir_fd=folder)
    try:
        os.fchmod(descriptor, READ_BY_ALL)
        with contextlib.suppress(FileExistsError):
            os.link(new, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    finally:
        os.close(descriptor)
        os.unlink(new, dir_fd=folder)


def _lock(descriptor: int, folder: int, name: str) -> bool:
    """Whether it could be locked, and is still the file of that name."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(0, "no plain file")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # What tidies up folders of temporary files goes by their age: that of another user's file by when it was read.
    os.read(descriptor, 1)
    with contextlib.suppress(PermissionError):
        os.utime(descriptor)
    try:
        return os.path.samestat(os.stat(name, dir_fd=folder, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
