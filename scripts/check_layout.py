"""Fails when the tree's dependencies point the wrong way.

proto <- common <- {client, artifact} <- {coordinator, cli, rollout_worker, reward_server, learner}; artifact <- model <-
{rollout_worker, reward_server, learner}; a role never includes another role; coordinator and cli never link LibTorch. The program
rlhf-model (model/tool) stands above the learner, whose sums of gradients it measures.
Usage: check_layout.py BUILD_DIR
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROLES = {"coordinator", "rollout_worker", "reward_server", "learner", "cli"}
MAY_INCLUDE = {
    "common": {"common"},
    "artifact": {"artifact", "common"},
    "client": {"client", "artifact", "common"},
    "model": {"model", "artifact", "common"},
    "model/tool": {"learner", "model", "artifact", "common"},
    "coordinator": {"coordinator", "client", "artifact", "common"},
    "cli": {"cli", "client", "artifact", "common"},
    "rollout_worker": {"rollout_worker", "model", "client", "artifact", "common"},
    "reward_server": {"reward_server", "model", "client", "artifact", "common"},
    "learner": {"learner", "model", "client", "artifact", "common"},
}
WITHOUT_TORCH = {"common", "artifact", "client", "coordinator", "cli"}
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.M)


def problems(build_dir: pathlib.Path):
    for folder, allowed in MAY_INCLUDE.items():
        for path in sorted((ROOT / folder).rglob("*")):
            within = [name for name in MAY_INCLUDE if path.is_relative_to(ROOT / name)]
            if path.suffix not in {".h", ".cc", ".cu"} or max(within, key=len) != folder:
                continue
            for include in INCLUDE.findall(path.read_text(encoding="utf-8")):
                top = include.split("/")[0]
                where = path.relative_to(ROOT)
                if top in MAY_INCLUDE and top not in allowed:
                    yield f"{where} includes {include}: {folder} may include only {', '.join(sorted(allowed))}"
                if folder in WITHOUT_TORCH and top in {"torch", "ATen", "c10"}:
                    yield f"{where} includes {include}: {folder} does without LibTorch"
    for name in ("rlhf-coordinator", "rlhfctl"):
        binary = build_dir / "bin" / name
        if not binary.exists():
            yield f"{binary} is missing: build it first"
            continue
        needed = subprocess.run(["readelf", "-d", str(binary)], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"NEEDED.*\[(lib(?:torch|c10)[^\]]*)\]", needed):
            yield f"{binary.name} links {library}: it must run without LibTorch"


found = list(problems(pathlib.Path(sys.argv[1])))
print("\n".join(found) or "layout: every dependency points one way")
sys.exit(1 if found else 0)
