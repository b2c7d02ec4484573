"""A cache of compiled code counts only where nobody else could have written it."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from qwen3_model.command.private_files import SharedFileError, cache_home, make_private, require_private

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def shared():
    """A folder that all users of the machine may enter and write, as /tmp."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def as_nobody(act):
    """Run a function in a process of another user."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            act()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(process, 0)[1] == 0


@pytest.mark.parametrize("named", [None, "", "rel", "./rel", "../rel", "~/rel"])
def test_a_relative_cache_home_is_ignored(named):
    environment = {} if named is None else {"XDG_CACHE_HOME": named}
    assert cache_home(environment) == Path.home() / ".cache"


def test_an_absolute_cache_home_is_taken():
    assert cache_home({"XDG_CACHE_HOME": "/big/cache"}) == Path("/big/cache")


def test_what_is_made_is_the_owners_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        folder = make_private(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert [place.stat().st_mode & 0o777 for place in (folder, folder.parent)] == [0o700, 0o700]
    assert make_private(folder) == folder


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o770, 0o702])
def test_a_folder_that_others_may_write_is_refused(tmp_path, mode):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(SharedFileError, match=r"cache can be written by others .*chmod go-w"):
        make_private(folder)


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o602])
def test_a_file_that_others_may_write_is_refused(tmp_path, mode):
    file = tmp_path / "kernels.so"
    file.touch()
    file.chmod(mode)
    with pytest.raises(SharedFileError, match="can be written by others"):
        require_private(file)


def test_a_link_or_pipe_is_refused_and_a_linked_folder_on_the_way_is_followed(tmp_path):
    real = make_private(tmp_path / "disk")
    (real / "file").touch(mode=0o600)
    (tmp_path / "link").symlink_to(real)
    assert require_private(tmp_path / "link" / "file") == real / "file"
    (real / "linked").symlink_to(real / "file")
    os.mkfifo(real / "pipe")
    for name in ("linked", "pipe"):
        with pytest.raises(SharedFileError, match="is a link or a special file"):
            require_private(real / name)


@as_root
def test_a_sticky_folder_above_keeps_what_is_ones_own(shared):
    folder = make_private(shared / "cache" / "mine")
    assert require_private(folder) == folder


@as_root
def test_a_folder_above_in_which_others_could_exchange_it_is_refused(shared):
    shared.chmod(0o777)
    (shared / "mine").mkdir(mode=0o700)
    with pytest.raises(SharedFileError, match="can be written by others"):
        require_private(shared / "mine")
    # Unless nobody else can come there.
    (shared / "closed").mkdir(mode=0o700)
    shared.chmod(0o755)
    (shared / "closed" / "open").mkdir()
    (shared / "closed" / "open").chmod(0o777)
    (shared / "closed" / "open" / "mine").mkdir(mode=0o700)
    require_private(shared / "closed" / "open" / "mine")


@as_root
def test_what_another_user_has_made_is_refused(shared):
    def plant():
        (shared / "cache").mkdir(0o755)
        (shared / "cache" / "x").touch(0o644)

    as_nobody(plant)
    with pytest.raises(SharedFileError, match=f"cache belongs to another user \\({NOBODY}\\)"):
        make_private(shared / "cache" / "new")
    for place in (shared / "cache", shared / "cache" / "x"):
        with pytest.raises(SharedFileError, match=f"cache belongs to another user \\({NOBODY}\\)"):
            require_private(place)
