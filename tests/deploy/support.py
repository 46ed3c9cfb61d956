"""What the checks of deploy/ that need root share: skipping with a reason, a clean Debian root, processes in it, a small job."""
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUITE = "bookworm"
MODEL = """{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 64,
 "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
 "rope_theta": 10000.0, "tie_word_embeddings": true, "vocab_size": 280, "torch_dtype": "float32"}
"""


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


def need_root(what):
    if os.geteuid() != 0:
        skip(f"only root may {what}")


def need_tools(*tools):
    for tool in tools:
        if not shutil.which(tool):
            skip(f"no {tool} here")


def need_namespaces(*kinds):
    probe = subprocess.run(["unshare", *kinds, "true"], capture_output=True, text=True)
    if probe.returncode != 0:
        skip(f"no namespaces may be made here: {probe.stderr.strip()}")


def run(*command, **options):
    print("+", *command, flush=True)
    return subprocess.run(list(map(str, command)), check=True, **options)


def sources():
    """The (mirror, release) pairs of Debian's suite that apt has here, the main one first."""
    text = subprocess.run(["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
                          capture_output=True, text=True).stdout
    found = []
    for line in text.splitlines():
        site, release, component = (line.split() + ["", "", ""])[:3]
        if release.split("-")[0] == SUITE and component == "main" and (site, release) not in found:
            found.append((site, release))
    return sorted(found, key=lambda pair: pair[1] != SUITE)


def mirror():
    """The Debian mirror that this machine uses."""
    for site, release in sources():
        if release == SUITE:
            return site
    skip(f"apt knows no mirror of Debian's {SUITE} main here")


def make_root(path):
    """A clean Debian root, as debootstrap makes it from this machine's mirror."""
    made = subprocess.run(["debootstrap", "--variant=minbase", "--include=ca-certificates", SUITE, path, mirror()])
    if made.returncode != 0:
        skip("debootstrap could make no root (see above)")
    return path


class Chroot:
    def __init__(self, path):
        self.path = pathlib.Path(path)

    def run(self, *command, **options):
        return run("chroot", self.path, *command, **options)

    def popen(self, command, uid, groups, log, umask=0o022):
        """A process as a unit's: its own user, the group of all roles, no other."""

        def become():
            os.chroot(self.path)
            os.chdir("/")
            os.setgroups(groups)
            os.setgid(uid)
            os.setuid(uid)
            os.umask(umask)

        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        with open(log, "w") as out:
            return subprocess.Popen(command, preexec_fn=become, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=environment)


def small_job(name, policy, prompts, scorer):
    """A PPO job of three steps."""
    return f"""name: {name}
seed: 3
learners: {{ranks: 1}}
ppo:
  policy: {policy}
  prompts: {prompts}
  scorer: {{components: [{scorer}]}}
  steps: 3
  prompts_per_step: 4
  samples_per_prompt: 2
  sampling: {{max_new_tokens: 8}}
  epochs: 1
  checkpoint_every: 2
"""


def write_small_data(folder):
    """config.json, text.txt to train a tokenizer on, and prompts.jsonl."""
    (folder / "config.json").write_text(MODEL)
    (folder / "text.txt").write_text("the cat sat on the mat and the dog sat on the log\n" * 40)
    (folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "the cat number {i}"}}\n' for i in range(20)))
