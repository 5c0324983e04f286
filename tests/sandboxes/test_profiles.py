"""Profiles: which packages a session sees, and what is said where that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandbox_arena import Go, open_box

from agentrl.errors import SandboxError
from sandboxes.embedded import Profile, zygote


def test_profiles_bring_what_packages_require() -> None:
    pytest.importorskip("matplotlib")
    names = set(Profile("mine", packages=("matplotlib",)).paths())
    assert names >= {"matplotlib", "mpl_toolkits", "numpy", "PIL", "dateutil", "contourpy"}
    assert not names & {"pytest", "_pytest", "hypothesis", "torch"}


def test_profiles_that_fail_name_profile_and_package(go: Go) -> None:
    with pytest.raises(SandboxError, match="profile 'mine' needs the package 'no_such'"):
        go(open_box(profile=Profile("mine", packages=("no_such",))))
    with pytest.raises(SandboxError, match=r"profile 'mine' cannot import: numpy\.no_such: "):
        go(open_box(profile=Profile("mine", packages=("numpy",), imports=("numpy.no_such",))))


def test_imports_that_take_too_long_name_profile_and_package(
    go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C23: imports have a budget of their own."""
    (tmp_path / "slow_package.py").write_text("import time\ntime.sleep(30)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(zygote, "_BOOT_S", 10.0)
    monkeypatch.setattr(zygote, "_IMPORT_SHARE", 0.05)
    profile = Profile("mine", packages=("slow_package",), imports=("json", "slow_package", "math"))
    with pytest.raises(SandboxError, match=r"'mine' cannot import: slow_package: .*within 0\.5 s"):
        go(open_box(profile=profile))


def test_packages_of_a_users_own(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "secret.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    async def play():
        profile = Profile("mine", packages=("tools",))
        async with await open_box(profile=profile) as box, box.session() as session:
            used = await session.run("import tools; tools.double(21)")
            return used, await session.run("import secret")

    used, absent = go(play())
    assert used.value == "42"
    assert absent.error is not None
    assert absent.error.name == "ModuleNotFoundError"
