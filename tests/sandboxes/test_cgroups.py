"""Control groups of version 2 and 1 on a made-up kernel: a folder with the files that it has."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxes.embedded import cgroups
from sandboxes.embedded.cgroups import Family, Hierarchy

FILES = ("memory.max", "memory.swap.max", "pids.max")
MIB = 1 << 20


class Kernel:
    """Version 2's rules: a group has the controllers that its parent gives on, and a group with
    processes in it gives none on, but for the root."""

    def __init__(self, root: Path, controllers: str = "cpu memory pids") -> None:
        self.root = root
        (root / "cgroup.controllers").write_text(controllers)
        (root / "cgroup.subtree_control").write_text("")
        (root / "cgroup.procs").write_text("")

    def mkdir(self, path: str) -> None:
        os.mkdir(path)
        here = Path(path)
        given = (here.parent / "cgroup.subtree_control").read_text()
        (here / "cgroup.controllers").write_text(given)
        (here / "cgroup.subtree_control").write_text("")
        (here / "cgroup.procs").write_text("")
        (here / "cpu.stat").write_text("usage_usec 0\nuser_usec 0\nsystem_usec 0\n")
        if "memory" in given:
            for name in FILES[:2]:
                (here / name).write_text("max")
            (here / "memory.events").write_text("low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n")
            (here / "memory.peak").write_text("0\n")
        if "pids" in given:
            (here / "pids.max").write_text("max")

    def write(self, path: str, text: str) -> None:
        file = Path(path)
        if not file.exists():
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        if file.name == "cgroup.subtree_control":
            self._give(file, text)
        elif file.name == "cgroup.procs":
            for other in self.root.rglob("cgroup.procs"):
                left = [pid for pid in other.read_text().split() if pid != text]
                other.write_text("\n".join(left))
            file.write_text("\n".join([*file.read_text().split(), text]))
        else:
            file.write_text(text)

    def _give(self, file: Path, text: str) -> None:
        names = text.replace("+", "").split()
        if not set(names) <= set((file.parent / "cgroup.controllers").read_text().split()):
            raise OSError(errno.ENOENT, "No such file or directory")
        if (file.parent / "cgroup.procs").read_text().split():
            raise OSError(errno.EBUSY, "Device or resource busy")
        file.write_text(" ".join(sorted({*file.read_text().split(), *names})))
        for child in file.parent.iterdir():
            if child.is_dir():
                (child / "cgroup.controllers").write_text(file.read_text())


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel(tmp_path)
    monkeypatch.setattr(cgroups, "_mkdir", made.mkdir)
    monkeypatch.setattr(cgroups, "_write", made.write)
    return made


def place(path: Path) -> Hierarchy:
    return Hierarchy(2, str(path))


def test_limits_of_version_2(kernel: Kernel) -> None:
    cgroups._delegate(str(kernel.root))
    group = Family(place(kernel.root)).group(64 * MIB, 16)
    assert [(Path(group.path) / name).read_text() for name in FILES] == [str(64 * MIB), "0", "18"]


def test_swap_that_is_not_counted_is_no_error(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups._delegate(str(kernel.root))

    def write(path: str, text: str) -> None:
        if path.endswith("memory.swap.max"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        kernel.write(path, text)

    monkeypatch.setattr(cgroups, "_write", write)
    group = Family(place(kernel.root)).group(MIB, 4)
    assert (Path(group.path) / "memory.max").read_text() == str(MIB)


def test_what_version_2_counts(kernel: Kernel) -> None:
    cgroups._delegate(str(kernel.root))
    group = Family(place(kernel.root)).group(64 * MIB, 16)
    assert (group.oom_kills(), group.cpu_s(), group.peak_mb()) == (0, 0.0, 0.0)
    here = Path(group.path)
    (here / "memory.events").write_text(
        "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 7\n"
    )
    (here / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\nsystem_usec 2\n")
    (here / "memory.peak").write_text(f"{3 * MIB}\n")
    assert (group.oom_kills(), group.cpu_s(), group.peak_mb()) == (2, 1.5, 3.0)
    (here / "memory.peak").unlink()  # before 5.19
    assert group.peak_mb() is None


def test_entrances_lead_into_the_group(kernel: Kernel) -> None:
    cgroups._delegate(str(kernel.root))
    group = Family(place(kernel.root)).group(MIB, 4)
    fd = group.entrance()
    os.write(fd, b"0")
    os.close(fd)
    assert (Path(group.path) / "cgroup.procs").read_text() == "0"


def test_controllers_are_given_on_where_they_are_not_yet(kernel: Kernel) -> None:
    kernel.write(str(kernel.root / "cgroup.subtree_control"), "+memory")
    cgroups._delegate(str(kernel.root))
    assert (kernel.root / "cgroup.subtree_control").read_text() == "memory pids"
    family = Family(place(kernel.root))
    assert (Path(family.path) / "cgroup.subtree_control").read_text() == "memory pids"


def test_absent_controllers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(tmp_path, "hugetlb pids")
    monkeypatch.setattr(cgroups, "_write", kernel.write)
    with pytest.raises(OSError, match="no controller memory here"):
        cgroups._delegate(str(tmp_path))


def test_a_group_that_holds_only_this_process_makes_room(kernel: Kernel) -> None:
    """Version 2 gives no controllers on from a group with processes in it."""
    kernel.write(str(kernel.root / "cgroup.procs"), str(os.getpid()))
    cgroups._delegate(str(kernel.root))
    leaf = kernel.root / f"agentrl-host-{os.getpid()}"
    assert (leaf / "cgroup.procs").read_text() == str(os.getpid())
    assert (kernel.root / "cgroup.procs").read_text() == ""
    Family(place(kernel.root)).group(MIB, 4)


def test_a_group_with_strangers_is_left_alone(kernel: Kernel) -> None:
    for pid in (1, os.getpid()):
        kernel.write(str(kernel.root / "cgroup.procs"), str(pid))
    with pytest.raises(OSError, match="other processes are in this group"):
        cgroups._delegate(str(kernel.root))
    assert not [p for p in kernel.root.iterdir() if p.is_dir()]
    assert (kernel.root / "cgroup.procs").read_text().split() == ["1", str(os.getpid())]


def files(monkeypatch: pytest.MonkeyPatch, found: dict[str, str]) -> None:
    read: Callable[[str], str] = cgroups._read
    monkeypatch.setattr(cgroups, "_read", lambda path: found.get(path) or read(path))


def test_detection_prefers_the_sibling_and_says_why_not(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "_enter", lambda _: None)
    kernel.mkdir(str(kernel.root / "a"))
    kernel.mkdir(str(kernel.root / "a" / "own"))
    kernel.write(str(kernel.root / "a" / "cgroup.procs"), "1")
    kernel.write(str(kernel.root / "a" / "own" / "cgroup.procs"), "2")
    mount = f"31 23 0:28 / {kernel.root} rw,relatime - cgroup2 cgroup2 rw\n"
    files(monkeypatch, {"/proc/self/mountinfo": mount, "/proc/self/cgroup": "0::/a/own\n"})
    assert [p.path for p in cgroups._places()] == [
        str(kernel.root / "a"),
        str(kernel.root / "a" / "own"),
    ]
    found, why = cgroups.detect()
    assert found is None
    assert why.count("no controller memory and pids here") == 2  # the root gives none on
    kernel.write(str(kernel.root / "cgroup.subtree_control"), "+memory +pids")
    found, why = cgroups.detect()
    assert found is None
    assert "other processes" in why
    kernel.write(str(kernel.root / "cgroup.procs"), "1")  # the stranger goes
    found, why = cgroups.detect()
    assert (found, why) == (place(kernel.root / "a"), "")


def test_places_of_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("memory/job", "cpu,cpuacct/other"):
        (tmp_path / name).mkdir(parents=True)
    mounts = (
        f"1 2 0:1 / {tmp_path}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        f"1 2 0:2 / {tmp_path}/memory rw - cgroup cgroup rw,memory\n"
    )
    own = "3:cpu,cpuacct:/other/x\n2:memory:/job/y\n0::/\n"
    files(monkeypatch, {"/proc/self/mountinfo": mounts, "/proc/self/cgroup": own})
    (found,) = cgroups._places()
    assert found == Hierarchy(1, f"{tmp_path}/memory/job", f"{tmp_path}/cpu,cpuacct/other")


def test_version_1_counts_cpu_once_it_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(path: str) -> None:
        os.mkdir(path)
        for name in ("cpuacct.usage", "memory.limit_in_bytes", "cgroup.procs"):
            (Path(path) / name).write_text("")

    def write(path: str, text: str) -> None:
        if not path.endswith("memory.memsw.limit_in_bytes"):
            mode = "a" if path.endswith("cgroup.procs") else "w"
            with open(path, mode) as file:
                file.write(text + "\n")

    monkeypatch.setattr(cgroups, "_mkdir", mkdir)
    monkeypatch.setattr(cgroups, "_write", write)
    for name in ("m", "cpu"):
        (tmp_path / name).mkdir()
    family = Family(Hierarchy(1, f"{tmp_path}/m", f"{tmp_path}/cpu"))
    group = family.group(64 * MIB, 16)
    assert (Path(group.path) / "memory.limit_in_bytes").read_text() == f"{64 * MIB}\n"
    assert group.cpu_s() is None
    assert not (Path(family.paths[1]) / "1").exists()
    (Path(group.path) / "cgroup.procs").write_text("10\n11\n")
    group.count_cpu(1.5)
    counted = Path(family.paths[1]) / "1"
    assert sorted((counted / "cgroup.procs").read_text().split()) == ["10", "11"]
    (counted / "cpuacct.usage").write_text("2500000000\n")
    assert group.cpu_s() == 4.0
    group.count_cpu(99.0)
    assert group.cpu_s() == 4.0
    without = Family(Hierarchy(1, f"{tmp_path}/m")).group(MIB, 4)
    without.count_cpu(1.0)
    assert without.cpu_s() is None
