"""The launchers for TPU VMs, GPUs, Slurm and XPK: real scripts, processes and signals; what they
call (gcloud, srun, xpk, ...) are stand-ins that record their arguments, and PATH has nothing else.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("supervise.sh", "tpu_vm.sh", "gpu.sh", "xpk.sh")
TOOLS = (
    *("bash", "cat", "chmod", "cksum", "date", "dirname", "env", "git", "grep", "gzip", "head"),
    *("mkdir", "rm", "sed", "seq", "setsid", "sort", "tail", "tar", "touch", "tr", "xargs"),
)

# Each of the stand-ins records its arguments in calls.log, as a line that a shell reads.
RECORD = """
line="${0##*/}"; for word in "$@"; do line="$line $(printf %q "$word")"; done
echo "$line" >>"$world/calls.log"
"""
UNRECORDED = ("uname", "id", "sleep", "python3")
STAND_INS = {
    # A machine of two workers, whose homes are the directories worker0 and worker1. Its states are
    # the lines of "states", one after another; the last one stays.
    "gcloud": """
    verb="$4" worker="" command=""
    for word in "$@"; do
      case "$word" in --worker=*) worker="${word#*=}" ;; --command=*) command="${word#*=}" ;; esac
    done
    [ "$worker" = all ] && workers="0 1" || workers="$worker"
    case "$verb" in
      describe)
        state="$(head -n 1 "$world/states")"
        if [ "$(grep -c . "$world/states")" -gt 1 ]; then sed -i 1d "$world/states"; fi
        if [ "$state" = MISSING ]; then echo "ERROR: (gcloud) NOT_FOUND: vdm" >&2; exit 1; fi
        if [ "$state" = OFFLINE ]; then echo "ERROR: no network" >&2; exit 1; fi
        echo "$state" ;;
      create)
        if [ -f "$world/no_capacity" ]; then rm "$world/no_capacity"; exit 1; fi
        echo "${AFTER_CREATE:-READY}" >"$world/states" ;;
      delete)
        for each in 0 1; do
          for file in "$world/worker$each/vdm_jax_run/pid" "$world/worker$each.pids"; do
            kill -9 $(cat "$file")
          done
          rm -rf "$world/worker$each" && mkdir "$world/worker$each"
        done 2>/dev/null
        echo MISSING >"$world/states" ;;
      scp) for each in $workers; do cat "$5" >"$world/worker$each/vdm_jax.tar.gz"; done ;;
      ssh)
        result=0
        for each in $workers; do
          export WORKER="worker$each"
          (cd "$world/$WORKER" && HOME="$PWD" bash -c "$command") || result=$?
        done
        exit "$result" ;;
    esac
    """,
    "uname": 'echo "${WORKER:-here}"',
    "mountpoint": "exit 1",
    "gcsfuse": "",
    "sudo": "",
    "id": "echo 1",
    "xpk": "",
    "nvidia-smi": 'for i in 0 1 2 3; do echo "GPU $i: a stand-in"; done',
    # Runs its command once, wherever the flags end.
    "srun": """
    while [ "${1#--}" != "$1" ]; do shift; done
    exec "$@"
    """,
    "scontrol": """
    if [ "$1" = show ]; then
      echo "   JobState=$(cat "$world/job_state" 2>/dev/null || echo RUNNING Reason=None)"
      echo "   Command=$world/a clone/launch/gpu.sh --max_restarts=1 -- --config=c.py"
    fi
    """,
    # Passes the signal on to what srun runs.
    "scancel": 'kill -s "$3" "$(cat "$world/trainer.pid")"',
    # Real pauses would be long: 0.02 s.
    "sleep": 'echo "$1" >>"$world/pauses.log"; exec {sleep} 0.02',
    # Installs by making .venv/bin/python; as a trainer runs the bash script "trainer".
    "python3": """
    case "$1 $2" in
      "-c "*) echo 3.12 ;;
      "-m venv") mkdir -p "$4/bin" && cat "$0" >"$4/bin/python" && chmod +x "$4/bin/python" ;;
      "-m launch.train")
        shift 2
        echo "${WORKER:-here}: $*" >>"$world/starts.log"
        starts="$(grep -c "^${WORKER:-here}: " "$world/starts.log")"
        . "$world/trainer" ;;
    esac
    """,
}
SAVES = """
echo $$ >"$world/trainer.pid"; echo $$ >>"$world/${WORKER:-here}.pids"
trap 'echo "${WORKER:-here} saved" >>"$world/saves.log"; exit ${CODE:-75}' TERM INT
echo ready >>"$world/ready.log"
while :; do sleep 1; done
"""


class World:
    """A directory with a clone of the repository, two workers, and stand-ins on the only PATH."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.clone = directory / "a clone"
        self.bin = directory / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        for worker in ("worker0", "worker1"):
            (directory / worker).mkdir()
        self.write("states", "READY\n")
        self.trainer("exit 0")
        (self.clone / "launch").mkdir(parents=True)
        for file in ROOT.glob("launch/*.sh"):
            shutil.copy(file, self.clone / "launch")
        shutil.copy(ROOT / "launch" / "constraints.txt", self.clone / "launch")
        shutil.copy(ROOT / "setup.py", self.clone)
        (self.clone / "launch" / "train.py").touch()

    def write(self, name, text):
        (self.directory / name).write_text(text)

    def read(self, name):
        file = self.directory / name
        return file.read_text().splitlines() if file.exists() else []

    def trainer(self, script):
        """What `python -m launch.train` does; $starts is how often this worker has started it."""
        self.write("trainer", script)

    def stand_in(self, *names):
        start = f"#!{shutil.which('bash')}\nworld={shlex.quote(str(self.directory))}\n"
        for name in names:
            record = "" if name in UNRECORDED else RECORD
            body = STAND_INS[name].replace("{sleep}", shutil.which("sleep"))
            (self.bin / name).write_text(start + record + body + "\n")
            (self.bin / name).chmod(0o755)
        return self

    def commit(self):
        git = ["git", "-C", self.clone, "-c", "user.name=t", "-c", "user.email=t@t.invalid"]
        subprocess.run([*git, "init", "--quiet"], check=True)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", "all"], check=True)
        return self

    def environment(self, **variables):
        return {"PATH": str(self.bin), "HOME": str(self.directory), **variables}

    def run(self, script, *arguments, cwd=None, **variables):
        return subprocess.run(
            [shutil.which("bash"), self.clone / "launch" / script, *arguments],
            cwd=cwd or self.directory,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=20,
        )

    def start(self, script, *arguments, **variables):
        return subprocess.Popen(
            [shutil.which("bash"), self.clone / "launch" / script, *arguments],
            cwd=self.directory,
            env=self.environment(**variables),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def calls(self, start=""):
        return [line for line in self.read("calls.log") if line.startswith(start)]

    def verbs(self):
        return [shlex.split(call)[4] for call in self.calls("gcloud")]


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path).stand_in("sleep", "uname", "python3")
    yield world
    # Whatever the test left running on purpose, or because it failed.
    for file in [*tmp_path.glob("*.pids"), *tmp_path.glob("**/vdm_jax_run/pid")]:
        for process in file.read_text().split():
            if str(tmp_path) in directory_of(process):
                kill(int(process), signal.SIGKILL)


def directory_of(process):
    try:
        return os.readlink(f"/proc/{process}/cwd")
    except OSError:
        return ""


def kill(process, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def finished(process):
    _, errors = process.communicate(timeout=10)
    return process.returncode, errors


def counted(world, script):
    """A command that counts its starts in starts.log and runs `script`, with the count in $n."""
    world.write(
        "command",
        f'cd "{world.directory}"; world="$PWD"; echo start >>starts.log\n'
        f"n=$(grep -c . starts.log)\n{script}",
    )
    return ["--", "bash", str(world.directory / "command")]


# --- supervise.sh ---


def test_a_command_that_succeeds_is_not_started_again(world):
    done = world.run("supervise.sh", *counted(world, "exit 0"))
    assert done.returncode == 0
    assert world.read("starts.log") == ["start"]
    assert "done" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_preempted_command_is_started_again_at_once_and_is_no_failure(world):
    command = counted(world, "[ $n = 4 ] && exit 0; exit 75")
    done = world.run("supervise.sh", "--max_restarts=0", *command)
    assert done.returncode == 0
    assert len(world.read("starts.log")) == 4
    assert world.read("pauses.log") == []
    assert done.stderr.count("preempted and saved") == 3


def test_a_failing_command_is_given_up_after_pauses_that_double(world):
    done = world.run("supervise.sh", "--max_restarts=7", *counted(world, "exit 9"))
    assert done.returncode == 9
    assert len(world.read("starts.log")) == 8
    assert world.read("pauses.log") == ["10", "20", "40", "80", "160", "300", "300"]
    assert len(done.stderr.splitlines()) == 8
    assert "giving up after 7 restarts" in done.stderr


def test_failures_after_progress_are_counted_anew(world):
    command = counted(world, "[ $n = 6 ] && exit 0; exit 1")
    done = world.run("supervise.sh", "--max_restarts=1", "--progress=0", *command)
    assert done.returncode == 0
    assert set(world.read("pauses.log")) == {"10"}


def test_term_reaches_the_command_once_so_that_it_can_save(world):
    process = world.start("supervise.sh", *counted(world, SAVES))
    until(lambda: world.read("ready.log"))
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
        process.send_signal(number)
    code, errors = finished(process)
    assert code == 75
    assert world.read("saves.log") == ["here saved"]
    assert world.read("starts.log") == ["start"]
    assert errors.count("TERM: passing it on") == 1


@pytest.mark.parametrize("code", [0, 75])
def test_ctrl_c_in_a_terminal_reaches_the_command_once(world, code):
    process = world.start("supervise.sh", *counted(world, SAVES), CODE=str(code))
    until(lambda: world.read("ready.log"))
    os.killpg(process.pid, signal.SIGINT)
    assert finished(process)[0] == code
    assert world.read("saves.log") == ["here saved"]
    assert world.read("starts.log") == ["start"]


@pytest.mark.parametrize(
    "trap, code",
    [
        ("", 75),  # it dies of the signal, before it has a handler
        ("trap 'exit 3' TERM", 3),
        ("trap 'exit 0' TERM", 0),
    ],
)
def test_after_term_the_code_says_whether_to_start_the_whole_again(world, trap, code):
    command = counted(world, f"{trap}\necho ready >>ready.log\nwhile :; do sleep 1; done")
    process = world.start("supervise.sh", *command)
    until(lambda: world.read("ready.log"))
    process.send_signal(signal.SIGTERM)
    assert finished(process)[0] == code
    assert world.read("starts.log") == ["start"]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_in_a_pause_ends_the_loop_at_once(world, number, code):
    (world.bin / "sleep").unlink()
    (world.bin / "sleep").symlink_to(shutil.which("sleep"))
    process = world.start("supervise.sh", "--pause=60", *counted(world, "exit 1"))
    assert "restart 1 of 3 in 60 s" in process.stderr.readline()
    process.send_signal(number)
    assert finished(process)[0] == code
    assert world.read("starts.log") == ["start"]


def test_a_scheduler_is_asked_to_start_the_whole_again(world):
    command = counted(world, "exit 75")
    asks = f"--on_preempted=echo asked >>'{world.directory}/asked.log'"
    assert world.run("supervise.sh", asks, *command).returncode == 75
    assert world.read("starts.log") == ["start"]
    assert world.read("asked.log") == ["asked"]


def test_signals_can_be_passed_on_by_a_command(world):
    command = counted(world, SAVES)
    world.stand_in("scancel")
    forward = "--forward=scancel 7 --signal"
    process = world.start("supervise.sh", forward, *command)
    until(lambda: world.read("ready.log"))
    process.send_signal(signal.SIGTERM)
    assert finished(process)[0] == 75
    assert world.calls() == ["scancel 7 --signal TERM"]


def test_a_run_in_the_background_can_be_asked_after_and_stopped(world):
    state = f"--state={world.directory}/vdm_jax_run"

    def ask(flag="--status"):
        return world.run("supervise.sh", state, flag).stdout.strip()

    assert ask() == "here: not started"
    command = counted(world, SAVES)
    assert world.run("supervise.sh", state, "--background", *command).returncode == 0
    assert ask() == "here: running"
    again = world.run("supervise.sh", state, *command)
    assert again.returncode == 2 and "one runs there already" in again.stderr
    until(lambda: world.read("ready.log"))
    assert ask("--stop") == "here: stopped with 75"
    assert ask("--stop") == ask() == "here: stopped with 75"
    assert "stopped by TERM with 75" in "".join(world.read("vdm_jax_run/log"))

    command = counted(world, "exit 4")
    world.run("supervise.sh", state, "--background", "--max_restarts=0", *command)
    until(lambda: ask() == "here: ended with 4")
    world.run("supervise.sh", state, "--background", *counted(world, "exec sleep 1"))
    kill(int(world.read("vdm_jax_run/pid")[0]), signal.SIGKILL)
    until(lambda: ask() == "here: gone")


# --- gpu.sh on one machine ---

TRAINING = ["--", "--config=configs/vdm/ucf101.py", "--workdir=runs/a 'b'"]
TRAINED = "--config=configs/vdm/ucf101.py --workdir=runs/a 'b'"


def test_gpu_dry_run_runs_nothing_and_prints_what_a_shell_reads(world):
    done = world.run("gpu.sh", "--dry-run", "--max_restarts=5", *TRAINING)
    assert (done.returncode, done.stderr) == (0, "")
    directory, install, train = map(shlex.split, done.stdout.splitlines())
    assert directory == ["cd", str(world.clone)]
    assert install == ["bash", "launch/setup_env.sh", "gpu"]
    python = [".venv/bin/python", "-m", "launch.train", *TRAINING[1:]]
    assert train == ["bash", "launch/supervise.sh", "--max_restarts=5", "--", *python]
    assert not (world.clone / ".venv").exists() and world.calls() == []


def test_gpu_installs_and_goes_on_after_a_preemption(world):
    world.trainer('[ "$starts" = 3 ] || exit 75')
    done = world.run("gpu.sh", *TRAINING)
    assert done.returncode == 0
    assert world.read("starts.log") == [f"here: {TRAINED}"] * 3


def test_gpu_gives_up_with_the_code_of_the_training(world):
    world.trainer("exit 6")
    assert world.run("gpu.sh", "--max_restarts=2", *TRAINING).returncode == 6
    assert len(world.read("starts.log")) == 3
    assert world.run("gpu.sh", "--unsupervised", *TRAINING).returncode == 6
    assert len(world.read("starts.log")) == 4


SHOW = (
    'echo "$VDM_JAX_PROCESS_ID/$VDM_JAX_NUM_PROCESSES $VDM_JAX_COORDINATOR'
    ' $CUDA_VISIBLE_DEVICES" >>"$world/shown.log"\n'
)


@pytest.mark.parametrize(
    "processes, visible, shares",
    [
        (4, None, ["0", "1", "2", "3"]),
        (2, None, ["0,1", "2,3"]),
        (2, "5,7", ["5", "7"]),
    ],
)
def test_processes_share_the_gpus_of_a_machine(world, processes, visible, shares):
    world.stand_in("nvidia-smi").trainer(SHOW)
    variables = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    flags = [f"--processes_per_node={processes}", "--port=81"]
    planned = world.run("gpu.sh", "--dry-run", *flags, *TRAINING, **variables)
    done = world.run("gpu.sh", *flags, *TRAINING, **variables)
    assert done.returncode == 0, done.stderr
    expected = [f"{i}/{processes} localhost:81 {share}" for i, share in enumerate(shares)]
    assert sorted(world.read("shown.log")) == expected
    lines = [shlex.split(line) for line in planned.stdout.splitlines()[-processes:]]
    assert [line[1] for line in lines] == [f"CUDA_VISIBLE_DEVICES={share}" for share in shares]


def test_one_process_that_fails_ends_the_others(world):
    world.stand_in("nvidia-smi").trainer(f'[ "$VDM_JAX_PROCESS_ID" != 2 ] || exit 8\n{SAVES}')
    done = world.run("gpu.sh", "--processes_per_node=4", "--max_restarts=0", *TRAINING)
    assert done.returncode == 8
    assert "process 2 failed with 8" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_process_once(world, number):
    world.stand_in("nvidia-smi").trainer(SAVES)
    process = world.start("gpu.sh", "--processes_per_node=4", *TRAINING)
    until(lambda: len(world.read("ready.log")) == 4)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    assert finished(process)[0] == 75
    assert world.read("saves.log") == ["here saved"] * 4
    assert len(world.read("starts.log")) == 4


def test_a_process_that_has_nothing_to_save_yet_does_not_end_the_saving_of_others(world):
    slow = SAVES.replace("; exit", "; for i in 1 2 3 4 5 6 7 8; do sleep 1; done; exit")
    world.stand_in("nvidia-smi").trainer(
        f'if [ "$VDM_JAX_PROCESS_ID" = 1 ]; then echo ready >>"$world/ready.log"\n'
        f"while :; do sleep 1; done; fi\n{slow}"
    )
    process = world.start("gpu.sh", "--processes_per_node=2", *TRAINING)
    until(lambda: len(world.read("ready.log")) == 2)
    process.send_signal(signal.SIGTERM)
    assert finished(process)[0] == 75
    assert world.read("saves.log") == ["here saved"]


# --- gpu.sh in a Slurm job ---


@pytest.fixture
def slurm(world):
    """Runs gpu.sh as Slurm does: a copy in a directory of Slurm's, with its variables."""
    world.stand_in("srun", "scontrol", "scancel")
    world.run("setup_env.sh")
    spool = world.directory / "spool"
    spool.mkdir()
    shutil.copy(world.clone / "launch" / "gpu.sh", spool / "slurm_script")
    variables = {"SLURM_JOB_ID": "31", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"}

    def start(*arguments):
        return subprocess.Popen(
            [shutil.which("bash"), spool / "slurm_script", *arguments],
            cwd=world.directory,
            env=world.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_slurm_starts_one_process_a_node_that_sees_all_its_gpus(world, slurm):
    world.trainer('echo "$JAX_LOCAL_DEVICE_IDS" >>"$world/shown.log"')
    assert finished(slurm(*TRAINING))[0] == 0
    step = shlex.split(world.calls("srun")[0])
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1"} <= set(step)
    assert world.read("shown.log") == ["0,1,2,3"]
    assert world.read("starts.log") == [f"here: {TRAINED}"]
    assert not world.calls("scontrol requeue")


def test_slurm_starts_one_process_a_gpu(world, slurm):
    world.trainer('echo "-$JAX_LOCAL_DEVICE_IDS-" >>"$world/shown.log"')
    assert finished(slurm("--processes_per_node=4", *TRAINING))[0] == 0
    assert {"--ntasks=8", "--ntasks-per-node=4"} <= set(shlex.split(world.calls("srun")[0]))
    assert world.read("shown.log") == ["--"]
    code, errors = finished(slurm("--processes_per_node=3", *TRAINING))
    assert code == 2 and "1 or the number of GPUs of a node, 4" in errors


def test_a_preempted_slurm_job_goes_into_the_queue_again(world, slurm):
    world.trainer("exit 75")
    assert finished(slurm(*TRAINING))[0] == 75
    assert world.calls("scontrol requeue") == ["scontrol requeue 31"]
    assert len(world.read("starts.log")) == 1


@pytest.mark.parametrize(
    "state, requeued",
    [
        ("COMPLETING Reason=TimeLimit", True),  # saved in the last moment
        ("COMPLETING Reason=None", False),  # what Slurm says after scancel
        ("CANCELLED Reason=None", False),
    ],
)
def test_a_slurm_job_that_was_cancelled_does_not(world, slurm, state, requeued):
    world.trainer("exit 75")
    world.write("job_state", state)
    assert finished(slurm(*TRAINING))[0] == 75
    assert bool(world.calls("scontrol requeue")) == requeued


def test_at_the_time_limit_slurm_itself_passes_the_signal_on(world, slurm):
    world.trainer(SAVES)
    process = slurm(*TRAINING)
    until(lambda: world.read("ready.log"))
    process.send_signal(signal.SIGTERM)
    assert finished(process)[0] == 75
    assert world.calls("scancel") == ["scancel 31 --signal TERM"]
    assert world.read("saves.log") == ["here saved"]
    assert world.calls("scontrol requeue") == ["scontrol requeue 31"]


def test_failures_in_a_slurm_job_are_restarted_and_given_up(world, slurm):
    world.trainer("exit 5")
    assert finished(slurm("--max_restarts=2", *TRAINING))[0] == 5
    assert len(world.calls("srun")) == 3
    assert world.calls("scontrol requeue") == []


def test_slurm_reads_its_defaults_from_the_script():
    lines = (ROOT / "launch" / "gpu.sh").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    defaults = [line.removeprefix("#SBATCH ") for line in lines[:first] if "#SBATCH" in line]
    assert {"--signal=B:TERM@120", "--requeue", "--nodes=1", "--gpus-per-node=8"} <= set(defaults)
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]


# --- tpu_vm.sh ---

MACHINE = ["--name=vdm", "--zone=us-east5-a", "--type=v5p-16", "--spot"]
RETRY = [*MACHINE, "--retry", "--poll=0"]


@pytest.fixture
def pod(world):
    return world.stand_in("gcloud", "mountpoint", "gcsfuse", "sudo", "id").commit()


def test_tpu_dry_run_needs_no_gcloud_and_prints_exactly_what_is_run(pod):
    flags = [*RETRY, "--mount=gs://bucket/a folder:/mnt/vdm"]
    (pod.bin / "gcloud").rename(pod.bin / "hidden")
    planned = pod.run("tpu_vm.sh", "run", *flags, "--dry-run", *TRAINING)
    assert planned.returncode == 0, planned.stderr
    assert planned.stderr == "" and pod.calls() == []

    (pod.bin / "hidden").rename(pod.bin / "gcloud")
    pod.write("states", "MISSING\n")
    assert pod.run("tpu_vm.sh", "run", *flags, *TRAINING).returncode == 0
    plan = [shlex.split(line) for line in planned.stdout.splitlines() if not line.startswith("#")]
    plan = [words for words in plan if words[0] == "gcloud"]
    done = [shlex.split(call) for call in pod.calls("gcloud")]
    while done[-4:-2] == done[-2:]:  # it looks as often as the run takes
        del done[-2:]
    verbs = " ".join(words[4] for words in done)
    assert verbs == "describe create describe ssh scp ssh ssh ssh ssh describe ssh"
    assert done[:2] + done[3:] == plan[: len(done) - 1]
    # Afterwards, the plan for restarts and preemptions.
    assert [words[4] for words in plan[len(done) - 1 :]] == ["ssh", "delete"]
    assert done[1][4:] == [
        "create",
        "vdm",
        "--accelerator-type=v5p-16",
        "--version=v2-alpha-tpuv5",
        "--spot",
        "--zone=us-east5-a",
    ]


def test_run_installs_what_is_committed_and_trains_on_every_worker(pod):
    pod.trainer(SAVES)
    stale = pod.directory / "worker0" / "vdm_jax"
    stale.mkdir()
    for name in ("stale", "data", ".uploaded"):
        (stale / name).write_text("launch/\nstale\n")
    done = pod.run("tpu_vm.sh", "run", *MACHINE, *TRAINING)
    assert done.returncode == 0, done.stderr
    until(lambda: len(pod.read("ready.log")) == 2)
    assert sorted(pod.read("starts.log")) == [f"worker{i}: {TRAINED}" for i in (0, 1)]
    assert (stale / "data").exists() and not (stale / "stale").exists()
    assert (stale / "setup.py").read_text() == (ROOT / "setup.py").read_text()

    status = pod.run("tpu_vm.sh", "status", *MACHINE).stdout.splitlines()
    assert status[0] == "READY"
    assert {"worker0: running", "worker1: running"} <= set(status)
    for again in (["run", *MACHINE, *TRAINING], ["install", *MACHINE]):
        done = pod.run("tpu_vm.sh", *again)
        assert done.returncode == 1 and "a run is going on there" in done.stderr
    stopped = pod.run("tpu_vm.sh", "stop", *MACHINE).stdout.splitlines()
    assert stopped == ["worker0: stopped with 75", "worker1: stopped with 75"]
    assert sorted(pod.read("saves.log")) == ["worker0 saved", "worker1 saved"]
    logs = pod.run("tpu_vm.sh", "logs", *MACHINE, "--worker=1", "--lines=1")
    assert "stopped by TERM with 75" in logs.stdout


def test_run_warns_of_what_is_not_committed(pod):
    (pod.clone / "setup.py").write_text("# changed\n")
    done = pod.run("tpu_vm.sh", "run", *MACHINE, *TRAINING)
    assert "not everything here is committed" in done.stderr
    until(lambda: len(pod.read("starts.log")) == 2)
    assert "changed" not in (pod.directory / "worker1" / "vdm_jax" / "setup.py").read_text()


def test_run_takes_another_repository_and_runs_another_command(pod):
    git = ["git", "-C", pod.clone]
    subprocess.run([*git, "branch", "other"], check=True)
    flags = [f"--repo=file://{pod.clone}", "--ref=other"]
    command = ["--", "bash", "-c", 'echo "$WORKER $*" >>../../other.log', "x", "a b"]
    for _ in range(2):
        done = pod.run("tpu_vm.sh", "run", *MACHINE, *flags, *command)
        assert done.returncode == 0, done.stderr
        assert "scp" not in pod.verbs()
        until(lambda: "ended" in pod.run("tpu_vm.sh", "status", *MACHINE).stdout)
        pod.run("tpu_vm.sh", "stop", *MACHINE)
    assert sorted(set(pod.read("other.log"))) == ["worker0 a b", "worker1 a b"]


def test_workers_restart_after_preemptions_by_themselves_and_the_watch_ends(pod):
    pod.trainer('[ "$starts" = 3 ] || exit 75')
    done = pod.run("tpu_vm.sh", "run", *RETRY, *TRAINING)
    assert done.returncode == 0, done.stderr
    assert len(pod.read("starts.log")) == 6
    assert "create" not in pod.verbs()


def test_a_preempted_machine_is_made_again_and_goes_on(pod):
    pod.trainer('[ "$starts" = 2 ] && exit 0\n' + SAVES)
    process = pod.start("tpu_vm.sh", "run", *RETRY, *TRAINING)
    until(lambda: len(pod.read("ready.log")) == 2)
    pod.write("states", "PREEMPTED\n")
    code, errors = finished(process)
    assert code == 0, errors
    assert len(pod.read("starts.log")) == 4
    verbs = [verb for verb in pod.verbs() if verb in ("create", "delete", "scp")]
    assert verbs == ["scp", "delete", "create", "scp"]
    assert "vdm is PREEMPTED" in errors


def test_a_machine_that_is_preempted_stays_without_retry(pod):
    pod.write("states", "TERMINATED\n")
    done = pod.run("tpu_vm.sh", "run", *MACHINE, *TRAINING)
    assert done.returncode == 1 and "vdm is TERMINATED: delete it" in done.stderr
    assert pod.verbs() == ["describe"]


def test_retry_waits_for_capacity_and_for_the_network(pod):
    pod.write("states", "OFFLINE\nMISSING\nMISSING\n")
    pod.write("no_capacity", "")
    done = pod.run("tpu_vm.sh", "run", *RETRY, *TRAINING)
    assert done.returncode == 0, done.stderr
    assert pod.verbs().count("create") == 2
    assert "could not be made: trying again" in done.stderr


def test_the_watch_ends_with_the_code_of_a_run_that_was_given_up(pod):
    pod.trainer('[ "$WORKER" = worker0 ] || exit 6\nexit 1')
    done = pod.run("tpu_vm.sh", "run", *RETRY, "--max_restarts=1", *TRAINING)
    assert done.returncode == 6
    assert len(pod.read("starts.log")) == 4
    assert "worker1: ended with 6" in done.stderr


def test_when_a_worker_was_restarted_the_run_starts_again_on_all(pod):
    pod.trainer('[ "$starts" = 2 ] && exit 0\n' + SAVES)
    process = pod.start("tpu_vm.sh", "run", *RETRY, *TRAINING)
    until(lambda: len(pod.read("ready.log")) == 2)
    kill(int(pod.read("worker1/vdm_jax_run/pid")[0]), signal.SIGKILL)
    code, errors = finished(process)
    assert code == 0, errors
    assert "a worker was restarted" in errors
    assert pod.read("saves.log") == ["worker0 saved"]


def test_a_run_that_is_stopped_is_not_started_again_by_the_watch(pod):
    pod.trainer(SAVES)
    process = pod.start("tpu_vm.sh", "run", *RETRY, *TRAINING)
    until(lambda: len(pod.read("ready.log")) == 2)
    assert pod.run("tpu_vm.sh", "stop", *MACHINE).returncode == 0
    code, errors = finished(process)
    assert code == 75 and "stopped; the same command goes on from there" in errors
    assert len(pod.read("starts.log")) == 2


def test_retry_takes_up_watching_a_run_that_is_going_on(pod):
    pod.trainer(SAVES)
    assert pod.run("tpu_vm.sh", "run", *MACHINE, *TRAINING).returncode == 0
    until(lambda: len(pod.read("ready.log")) == 2)
    process = pod.start("tpu_vm.sh", "run", *RETRY, *TRAINING)
    until(lambda: pod.verbs().count("describe") > 4)
    pod.run("tpu_vm.sh", "stop", *MACHINE)
    code, errors = finished(process)
    assert code == 75 and "a run is going on there already" in errors
    assert len(pod.read("starts.log")) == 2


def test_slices_are_a_queued_resource_for_every_command(pod):
    flags = [*MACHINE, "--slices=2", "--project=p", "--create_flag=--network=n", "--poll=0"]
    pod.write("states", "MISSING\n")
    done = pod.run("tpu_vm.sh", "create", *flags, AFTER_CREATE="WAITING_FOR_RESOURCES\nACTIVE")
    assert done.returncode == 0 and "WAITING_FOR_RESOURCES" in done.stderr
    create = shlex.split(pod.calls("gcloud compute tpus queued-resources create")[0])
    assert {"--node-count=2", "--node-prefix=vdm", "--runtime-version=v2-alpha-tpuv5"} < set(create)
    assert {"--spot", "--network=n", "--project=p"} < set(create)
    flags = [*flags, "--ssh_flag=--internal-ip"]
    assert pod.run("tpu_vm.sh", "run", *flags, *TRAINING).returncode == 0
    assert pod.run("tpu_vm.sh", "delete", *flags).returncode == 0
    calls = [shlex.split(call) for call in pod.calls("gcloud")]
    assert {call[3] for call in calls} == {"queued-resources"}
    for call in calls:
        if call[4] in ("ssh", "scp"):
            assert {"--worker=all", "--node=all", "--internal-ip", "--project=p"} < set(call)
    assert {"--force", "--quiet"} < set(calls[-1])
    single = pod.run("tpu_vm.sh", "create", *MACHINE, "--queued", "--dry-run").stdout
    assert "--node-id=vdm" in single


def test_ssh_runs_a_command_on_every_worker_or_opens_a_shell_on_one(pod):
    pod.run("tpu_vm.sh", "install", *MACHINE)
    done = pod.run("tpu_vm.sh", "ssh", *MACHINE, "--", "python", "-c", "a b")
    assert done.stdout == "3.12\n3.12\n"
    pod.run("tpu_vm.sh", "ssh", *MACHINE, "--worker=1")
    assert pod.calls()[-1] == "gcloud compute tpus tpu-vm ssh vdm --worker=1 --zone=us-east5-a"


def test_mount_mounts_the_bucket_on_every_worker(pod):
    flags = ["--mount=gs://bucket/a folder:/mnt/vdm"]
    assert pod.run("tpu_vm.sh", "install", *MACHINE, *flags).returncode == 0
    mounts = [shlex.split(call) for call in pod.calls("gcsfuse")]
    assert len(mounts) == 2
    assert mounts[0][-2:] == ["bucket", "/mnt/vdm"]
    assert {"--only-dir=a folder", "--rename-dir-limit=1000000"} < set(mounts[0])
    assert pod.calls("sudo")[:2] == ["sudo mkdir -p /mnt/vdm", "sudo chown 1:1 /mnt/vdm"]


def test_a_python_that_is_new_enough_is_fetched_where_there_is_none(pod):
    python = pod.bin / "python3"
    text = python.read_text()
    newer = pod.directory / "python3.12"
    newer.write_text(text)
    newer.chmod(0o755)
    old = '"-c "*) echo 3.10; exit 1 ;;\n "-m uv") [ "$4" != find ] || echo "$world/python3.12"'
    python.write_text(text.replace('"-c "*) echo 3.12', old))
    done = pod.run("tpu_vm.sh", "install", *MACHINE)
    assert done.returncode == 0, done.stderr
    assert (pod.directory / "worker1" / "vdm_jax" / ".venv" / "bin" / "python").exists()


# --- xpk.sh ---

WORKLOAD = ["--cluster=pods", "--workload=vdm-1", "--type=v5p-16", "--storage=shared"]


def test_xpk_sends_what_is_committed_and_a_command_that_restarts(world):
    world.stand_in("xpk").commit()
    flags = [*WORKLOAD, "--slices=2", "--project=p", "--zone=z", "--image=i", "--max_preemptions=9"]
    planned = world.run("xpk.sh", *flags, "--dry-run", *TRAINING)
    assert planned.returncode == 0, planned.stderr
    packed = world.directory / ".cache" / "vdm_jax" / "vdm-1"
    assert world.calls() == [] and not packed.exists()
    (world.clone / "uncommitted").touch()
    done = world.run("xpk.sh", *flags, *TRAINING)
    assert done.returncode == 0 and "not everything here is committed" in done.stderr
    call = shlex.split(world.calls("xpk")[0])
    assert call == shlex.split(planned.stdout.splitlines()[-1])
    assert (packed / "launch" / "supervise.sh").exists() and not (packed / "uncommitted").exists()
    assert {"--tpu-type=v5p-16", "--num-slices=2", "--restart-on-exit-codes=75"} < set(call)
    assert {"--storage=shared", "--base-docker-image=i", "--max-restarts=9"} < set(call)

    # What a worker does with it.
    world.trainer('[ "$starts" = 2 ] || exit 75')
    command = call[-1].removeprefix("--command=")
    subprocess.run(
        [shutil.which("bash"), "-c", f"({command}) & wait $!"],
        cwd=packed,
        env=world.environment(WORKER="pod"),
        check=True,
        capture_output=True,
    )
    assert world.read("starts.log") == [f"pod: {TRAINED}"] * 2


# --- all of them ---


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        ("supervise.sh", [], "a command is missing"),
        ("supervise.sh", ["--pause", "3"], "unknown flag --pause"),
        ("supervise.sh", ["--max_restarts=x", "--", "a"], "--max_restarts=x: not a whole number"),
        ("supervise.sh", ["--status"], "--state=DIR is missing"),
        ("gpu.sh", [], "the arguments of training are missing"),
        ("gpu.sh", ["--config=c.py"], "unknown flag --config=c.py"),
        ("gpu.sh", ["--processes_per_node=0", *TRAINING], "--processes_per_node=0"),
        ("gpu.sh", ["--processes_per_node=2", "--unsupervised", *TRAINING], "finds no GPU"),
        ("tpu_vm.sh", [], "a command comes first"),
        ("tpu_vm.sh", ["--name=vdm"], "a command comes first"),
        ("tpu_vm.sh", ["rum"], "unknown command rum"),
        ("tpu_vm.sh", ["run"], "--name=NAME is missing"),
        ("tpu_vm.sh", ["run", "--name=vdm"], "--zone=ZONE is missing"),
        ("tpu_vm.sh", ["create", "--name=vdm", "--zone=z"], "--type=TYPE is missing"),
        ("tpu_vm.sh", ["create", "--name=vdm", "--zone=z", "--type=v9-1"], "--version=VERSION is"),
        ("tpu_vm.sh", ["run", *RETRY], "the arguments of training are missing"),
        ("tpu_vm.sh", ["run", *RETRY, "--", "--workdir=gs://b"], "cannot write there"),
        ("tpu_vm.sh", ["run", *RETRY, "--mount=gs://b", "--", "-a"], "--mount=gs://b: not of the"),
        ("tpu_vm.sh", ["run", *RETRY, "--slices=0", "--", "-a"], "--slices=0: not at least 1"),
        ("tpu_vm.sh", ["run", *RETRY, "--slice=2"], "unknown flag --slice=2"),
        ("tpu_vm.sh", ["delete", *MACHINE, "--", "a"], "takes no arguments"),
        ("tpu_vm.sh", ["status", *MACHINE], "gcloud is not installed"),
        ("tpu_vm.sh", ["run", *MACHINE, "--dry-run", *TRAINING], "is no Git repository"),
        ("xpk.sh", [], "--cluster=NAME is missing"),
        ("xpk.sh", WORKLOAD[:1], "--workload=NAME is missing"),
        ("xpk.sh", WORKLOAD[:2], "--type=TYPE is missing"),
        ("xpk.sh", WORKLOAD[:3], "--storage=NAME is missing"),
        ("xpk.sh", WORKLOAD, "the arguments of training are missing"),
        ("xpk.sh", [*WORKLOAD, *TRAINING], "xpk is not installed"),
    ],
)
def test_a_mistake_is_told_in_one_line(world, script, arguments, message):
    done = world.run(script, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr and done.stderr.startswith(f"{script}: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_documents_every_flag_and_no_other(world, script):
    done = world.run(script, "--help")
    assert done.returncode == 0 and f"bash launch/{script} " in done.stdout
    assert "set -e" not in done.stdout and "SBATCH" not in done.stdout
    text = (ROOT / "launch" / script).read_text()
    patterns = re.findall(r"^\s+(--[a-z_|\- =*]+|--help \| -h)\)", text, re.MULTILINE)
    parsed = set(re.findall(r"--[a-z][a-z_-]+", " ".join(patterns)))
    documented = set(re.findall(r"^  +(--[a-z][a-z_-]+)", done.stdout, re.MULTILINE))
    assert len(parsed) > 4
    assert parsed == documented
    assert all(len(line) <= 100 for line in done.stdout.splitlines())
