"""Becomes the container that a file describes (tests/deploy/pods.py writes it): mounts, processes, rights and command of its own.
Run as a program with that file, in the pod's namespaces.
"""
import ctypes
import json
import os
import pathlib
import stat
import subprocess
import sys

NEW_MOUNTS, NEW_PROCESSES = 0x00020000, 0x20000000  # CLONE_NEWNS, CLONE_NEWPID
SET_DEATH_SIGNAL, DROP_BOUNDING, NO_NEW_PRIVILEGES = 1, 24, 38  # prctl


def run_container(specification):
    """A child in mount and process namespaces of its own becomes the container; exits as it does, with 128 + N for signal N."""
    spec = json.loads(pathlib.Path(specification).read_text())
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(NEW_MOUNTS | NEW_PROCESSES) == 0, os.strerror(ctypes.get_errno())
    child = os.fork()
    if child == 0:
        try:
            become_container(spec, libc)
        except BaseException as error:
            print(f"the container could not be made: {error}", file=sys.stderr, flush=True)
            os._exit(126)
    (pathlib.Path(spec["place"]) / "pid").write_text(str(child))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(128 - code if code < 0 else code)


def become_container(spec, libc):
    """Mounts, then the command in its root with its rights; returns never."""
    place = pathlib.Path(spec["place"])
    mount = lambda *words: subprocess.run(["mount", *map(str, words)], check=True)
    root = place / "root"
    mount("-t", "overlay", "-o", f"lowerdir={spec['image']},upperdir={place / 'upper'},workdir={place / 'work'}", "overlay", root)
    inside = lambda path: root / path.lstrip("/")
    in_dev = [path for _, path, _ in spec["mounts"] if path.startswith("/dev/")]
    for path in ["/proc", "/dev", "/sys", *[path for _, path, _ in spec["mounts"] if path not in in_dev]]:
        inside(path).mkdir(parents=True, exist_ok=True)
    for path in spec["files"]:
        inside(path).touch()
    upper = place / "upper"
    made = [str(path.relative_to(upper)) for path in upper.rglob("*")]
    (place / "mount-points.json").write_text(json.dumps(made))
    if spec["read_only"]:
        mount("-o", "remount,ro", root)
    mount("-t", "proc", "-o", "nosuid,nodev,noexec", "proc", inside("/proc"))
    mount("-t", "sysfs", "-o", "ro,nosuid,nodev,noexec", "sysfs", inside("/sys"))
    device_folder = inside("/dev")
    mount("-t", "tmpfs", "-o", "nosuid,mode=755", "tmpfs", device_folder)
    for name, minor in {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}.items():
        os.mknod(device_folder / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        (device_folder / name).chmod(0o666)
    for name, target in {"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}.items():
        (device_folder / name).symlink_to(f"/proc/self/{target}")
    shared = device_folder / "shm"
    shared.mkdir()
    if "/dev/shm" not in in_dev:
        mount("-t", "tmpfs", "-o", "nosuid,nodev,noexec,mode=1777,size=64m", "tmpfs", shared)
    for source, path, read_only in [*spec["mounts"], *[(file, path, spec["read_only"]) for path, file in spec["files"].items()]]:
        assert path == "/dev/shm" or not path.startswith(("/dev/", "/proc/", "/sys/")), f"a volume at {path} is not implemented"
        mount("--bind", source, inside(path))
        if read_only:
            mount("-o", "remount,bind,ro", inside(path))
    os.chroot(root)
    os.chdir(spec["directory"])
    for capability in range(64):
        if libc.prctl(DROP_BOUNDING, capability, 0, 0, 0) != 0:
            break
    assert libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0, os.strerror(ctypes.get_errno())
    os.setgroups(spec["groups"])
    os.setresgid(*[spec["gid"]] * 3)
    os.setresuid(*[spec["uid"]] * 3)
    # After the change of user, which resets it: no container outlives its runner.
    libc.prctl(SET_DEATH_SIGNAL, 9, 0, 0, 0)
    os.umask(0o022)
    os.execvpe(spec["command"][0], spec["command"], spec["environment"])


if __name__ == "__main__":
    run_container(sys.argv[1])
