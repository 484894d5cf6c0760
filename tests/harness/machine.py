"""A machine to install things on: systemd as the first process of namespaces of its own, over a copy (on
write) of this system. What happens there is not seen here, and ends with it."""

import os
import shutil
import subprocess
from pathlib import Path

from .proxy import eventually

BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs none "$1"
mkdir "$1/up" "$1/work" "$1/root"
mount -t overlay none -o "lowerdir=/,upperdir=$1/up,workdir=$1/work" "$1/root"
cd "$1/root"
for each in proc sys dev; do mount --rbind "/$each" "$each"; done
@groups@
# The kernel is this system's.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t tmpfs none run
mount -t tmpfs none tmp
mkdir run/lock
cp "$2" opt/package.deb
# Nothing of this system is started there, but for what a test starts.
rm -rf etc/systemd/system usr/sbin/policy-rc.d etc/fstab
mkdir etc/systemd/system
for each in sysinit basic network-online multi-user; do
    printf '[Unit]\\nDescription=%s\\nDefaultDependencies=no\\n' "$each" >"etc/systemd/system/$each.target"
done
ip link set lo up
mkdir -p mnt/before
pivot_root . mnt/before
umount -l mnt/before
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=0
"""
NEEDED = ("unshare", "nsenter", "pivot_root", "ip", "curl", "systemctl", "dpkg", "deb-systemd-helper", "adduser")


def control_groups() -> tuple[list[Path], str]:
    """A group for the machine below each that this process is in, and the commands by which it sees no
    others. One of cpus would take settings first, and systemd leaves them alone."""
    top, groups, mounts = Path("/sys/fs/cgroup"), [], ["mount -t tmpfs none sys/fs/cgroup"]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        kind = f"cgroup -o none,{controllers}" if "=" in controllers else f"cgroup -o {controllers}"
        hierarchy = top / controllers.removeprefix("name=")
        if not controllers:
            kind = "cgroup2"
            hierarchy = top / "unified" if (top / "unified").exists() else top
        if controllers != "cpuset" and (hierarchy / "cgroup.procs").exists():
            groups.append(hierarchy / path[1:] / f"ringx-test-{os.getpid()}")
            mounts.append(f"mkdir -p .{hierarchy} && mount -t {kind} none .{hierarchy}")
    return groups, "\n".join(mounts)


class Machine:
    def __init__(self, folder: Path, package: Path):
        """`package` is there as /opt/package.deb. Raises `OSError` where there can be no such machine."""
        missing = [name for name in NEEDED if not shutil.which(name)]
        if os.geteuid() != 0 or missing:
            raise OSError(f"not root, or without {missing}")
        root = folder / "machine"
        root.mkdir()
        self.console = folder / "console"
        spaces = ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts", "--ipc", "--net", "--cgroup"]
        self.groups, mounts = control_groups()
        boot = BOOT.replace("@groups@", mounts)
        for group in self.groups:
            group.mkdir()
        enter = "".join(f"echo $$ >'{group}/cgroup.procs' && " for group in self.groups) + 'exec "$@"'
        command = ["sh", "-c", enter, "sh", "unshare", *spaces, "sh", "-c", boot, "sh", root, package]
        with self.console.open("wb") as console:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        try:
            eventually(self._is_up, "the machine has started")
        except BaseException:
            self.stop()
            raise

    def _is_up(self) -> bool:
        if self.process.poll() is not None:
            raise ChildProcessError(self.console.read_text())
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        assert children
        self.first = int(children[0])
        assert Path(f"/proc/{self.first}/comm").read_text() == "systemd\n"
        return self.run("systemctl", "is-active", "basic.target", check=False).stdout == "active\n"

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        there = ["nsenter", "--target", str(self.first), "--all", "--root", "--wd"]
        done = subprocess.run([*there, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50)
        if check:
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.console.read_text()}"
        return done

    def shell(self, text: str, check: bool = True) -> str:
        return self.run("sh", "-c", text, check=check).stdout

    def show(self, unit: str, *names: str) -> list[str]:
        """Properties of a unit."""
        told = self.run("systemctl", "show", unit, *(f"--property={name}" for name in names)).stdout
        values = dict(line.split("=", 1) for line in told.splitlines())
        return [values[name] for name in names]

    def pid_here(self, pid: int) -> int:
        """The number that a process of the machine has outside."""
        space = os.readlink(f"/proc/{self.first}/ns/pid")
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                numbers = next(line for line in status.read_text().splitlines() if line.startswith("NSpid:")).split()
                if int(numbers[-1]) == pid and os.readlink(status.with_name("ns") / "pid") == space:
                    return int(status.parent.name)
            except (OSError, StopIteration):
                continue
        raise ProcessLookupError(pid)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for group in self.groups:
            eventually(lambda group=group: remove(group), f"{group} is left")


def remove(group: Path) -> bool:
    """With all below it, as soon as nobody is in it."""
    for each in sorted([group, *(path for path in group.rglob("*") if path.is_dir())], reverse=True):
        each.rmdir()
    return True
