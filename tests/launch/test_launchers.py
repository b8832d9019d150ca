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
SCRIPTS = ("supervise.sh", "tpu_vm.sh", "mount_bucket.sh", "gpu.sh", "xpk.sh")
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
    # the lines of "states", one after another; the last one stays. As a queued resource it has the
    # slices vdm-0 and vdm-1, whose states are in files of these names, READY without. Workers in
    # "unreachable" do not answer: of a queued resource gcloud leaves them out and reports success.
    "gcloud": """
    [ "$1" != alpha ] || shift
    group="$3" verb="$4" worker="" command=""
    for word in "$@"; do
      case "$word" in --worker=*) worker="${word#*=}" ;; --command=*) command="${word#*=}" ;; esac
    done
    [ "$worker" = all ] && workers="0 1" || workers="$worker"
    case "$verb" in
      describe)
        case "$5" in
          vdm-*) state="$(cat "$world/$5" 2>/dev/null || echo READY)" count=1 ;;
          *)
            state="$(head -n 1 "$world/states")" count=2
            if [ "$(grep -c . "$world/states")" -gt 1 ]; then sed -i 1d "$world/states"; fi ;;
        esac
        if [ "$state" = MISSING ]; then echo "ERROR: (gcloud) NOT_FOUND: vdm" >&2; exit 1; fi
        if [ "$state" = OFFLINE ]; then echo "ERROR: no network" >&2; exit 1; fi
        [ "$group" = queued-resources ] && echo "$state" || printf '%s\\t%s\\n' "$state" "$count" ;;
      create)
        if [ -s "$world/refusals" ]; then
          head -n 1 "$world/refusals" >&2
          sed -i 1d "$world/refusals"
          exit 1
        fi
        echo "${AFTER_CREATE:-READY}" >"$world/states" ;;
      delete)
        for each in 0 1; do
          for file in "$world/worker$each/vdm_jax_run/pid" "$world/worker$each.pids"; do
            kill -9 $(cat "$file")
          done
          rm -rf "$world/worker$each" && mkdir "$world/worker$each"
        done 2>/dev/null
        rm -f "$world/vdm-0" "$world/vdm-1"
        [ -f "$world/stays_unreachable" ] || rm -f "$world/unreachable"
        echo MISSING >"$world/states" ;;
      scp) for each in $workers; do cat "$5" >"$world/worker$each/vdm_jax.tar.gz"; done ;;
      ssh)
        result=0
        for each in $workers; do
          if grep -qsx "$each" "$world/unreachable"; then
            [ "$group" = queued-resources ] || result=255
            [ ! -f "$world/hangs" ] || {sleep} 60
            continue
          fi
          export WORKER="worker$each"
          (cd "$world/$WORKER" && HOME="$PWD" bash -c "$command") || result=$?
        done
        exit "$result" ;;
    esac
    """,
    "uname": 'echo "${WORKER:-here}"',
    "mountpoint": "exit 1",
    "gcsfuse": "",
    # apt-get finds its locks held so often as "apt_locked" has lines, as after a first boot.
    "sudo": """
    if [ "$1" = tee ]; then cat >/dev/null; fi
    [ "$1" = apt-get ] || exit 0
    if [ -s "$world/apt_locked" ]; then
      sed -i 1d "$world/apt_locked"
      echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 911 (apt-get)" >&2
      exit 100
    fi
    if [ -f "$world/apt_broken" ]; then echo "E: Unable to locate package gcsfuse" >&2; exit 100; fi
    case "$*" in
      *install*)
        printf '#!%s\\necho "gcsfuse $*" >>"%s/calls.log"\\n' "$BASH" "$world" \\
          >"$world/bin/gcsfuse"
        chmod +x "$world/bin/gcsfuse" ;;
    esac
    """,
    "curl": "echo key",
    "lsb_release": "echo jammy",
    "id": "echo 1",
    # Does what the Dockerfile says in the directory "image", with the stand-ins' Python.
    "docker": """
    [ "$1" = build ] || exit 0
    file="" context="${@: -1}" image="$world/image"
    while [ $# -gt 0 ]; do case "$1" in -f) file="$2" ;; esac; shift; done
    rm -rf "$image"; mkdir "$image"
    sed -e ':a' -e '/\\\\$/{N;s/\\\\\\n//;ba' -e '}' "$file" | grep -E '^(ARG|COPY|RUN) ' |
      while read -r step rest; do
        case "$step" in
          ARG) export "$rest" ;;
          COPY)
            read -r -a words <<<"$rest"
            for source in "${words[@]::${#words[@]}-1}"; do
              mkdir -p "$image/${words[@]: -1}"
              if [ -d "$context/$source" ]; then source="$source/."; fi
              cp -R "$context/$source" "$image/${words[@]: -1}" || exit 1
            done ;;
          RUN) (cd "$image" && PATH="$image/.venv/bin:$PATH" bash -ec "$rest") || exit 1 ;;
        esac
      done
    """,
    # A JobSet of two pods with XPK's policy: with 42, 127 to 255 and the codes of the flag all pods
    # are started again, --max-restarts times; any other code ends the run.
    "xpk": """
    codes=" 42 $(seq -s ' ' 127 255) " left=0 command=""
    for word in "$@"; do
      case "$word" in
        --restart-on-exit-codes=*) codes="$codes${word#*=} " ;;
        --max-restarts=*) left="${word#*=}" ;;
        --command=*) command="${word#*=}" ;;
      esac
    done
    [ -d "$world/image" ] || exit 0
    cd "$world/image"
    while :; do
      pids="" again=0 ended=0
      for pod in pod0 pod1; do
        export WORKER=$pod
        PATH="$world/image/.venv/bin:$PATH" bash -c \\
          "($command) & echo \\$! >'$world/$WORKER.shell'; wait \\$!" &
        pids="$pids $!"
      done
      for pid in $pids; do
        code=0
        wait "$pid" || code=$?
        case " 0 $codes" in *" $code "*) ;; *) ended=$code ;; esac
        [ "$code" = 0 ] || again=1
      done
      echo "pods ended: again $again, failed $ended" >>"$world/jobset.log"
      [ "$ended" = 0 ] || exit 1
      [ "$again" = 1 ] || exit 0
      [ "$left" -gt 0 ] || exit 1
      left=$((left - 1))
    done
    """,
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
            timeout=100,
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


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def finished(process):
    _, errors = process.communicate(timeout=100)
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

    def start(*arguments, without=()):
        chosen = {name: value for name, value in variables.items() if name not in without}
        return subprocess.Popen(
            [shutil.which("bash"), spool / "slurm_script", *arguments],
            cwd=world.directory,
            env=world.environment(**chosen),
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


def test_without_gpus_as_generic_resources_nvidia_smi_counts_them(world, slurm):
    world.trainer('echo "$JAX_LOCAL_DEVICE_IDS" >>"$world/shown.log"')
    code, errors = finished(slurm(*TRAINING, without=["SLURM_GPUS_ON_NODE"]))
    assert code == 2 and "nvidia-smi finds no GPU on here" in errors  # and not the CPU in silence
    world.stand_in("nvidia-smi")
    assert finished(slurm(*TRAINING, without=["SLURM_GPUS_ON_NODE"]))[0] == 0
    assert world.read("shown.log") == ["0,1,2,3"]


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
    assert {"--signal=B:TERM@120", "--requeue", "--nodes=1"} <= set(defaults)
    # All of the node; Slurm counts memory apart. GPUs are no resource of every cluster.
    assert {"--exclusive", "--mem=0"} <= set(defaults) and "gpus" not in " ".join(defaults)
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]


# --- tpu_vm.sh ---

TYPED = ["create", "--name=vdm", "--zone=z"]
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
    while done[-5:-3] == done[-3:-1]:  # it looks as often as the run takes
        del done[-3:-1]
    verbs = " ".join(words[4] for words in done)
    assert verbs == "describe create describe ssh scp ssh ssh ssh ssh describe ssh ssh"
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
    pod.write("refusals", "ERROR: There is no more capacity in the zone\n")
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
    # gcloud describes slices as machines of their own.
    slices = [call for call in calls if call[3] == "tpu-vm"]
    assert {(call[4], call[5]) for call in slices} == {("describe", "vdm-0"), ("describe", "vdm-1")}
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
    assert {"--only-dir=a folder", "--metadata-cache-ttl-secs=0"} < set(mounts[0])
    assert pod.calls("sudo")[:2] == ["sudo mkdir -p /mnt/vdm", "sudo chown 1:1 /mnt/vdm"]


@pytest.fixture
def worker(world):
    """A worker without gcsfuse, which `sudo apt-get install` brings."""
    (world.bin / "tee").symlink_to(shutil.which("tee"))
    return world.stand_in("mountpoint", "sudo", "id", "curl", "lsb_release")


MOUNT = ["--bucket=b", "--directory=/mnt/vdm"]


def test_mounting_waits_for_the_locks_that_apt_has_after_a_first_boot(worker):
    worker.write("apt_locked", "busy\n" * 3)
    done = worker.run("mount_bucket.sh", *MOUNT, "--apt_pause=7")
    assert done.returncode == 0, done.stderr
    assert worker.read("pauses.log") == ["7"] * 3
    assert done.stderr.count("waiting for apt's lock") == 1
    update, install = (call for call in worker.calls("sudo apt-get")[-2:])
    assert " update" in update and " install -y gcsfuse" in install
    assert worker.calls("gcsfuse")[0].endswith(" b /mnt/vdm")


def test_mounting_gives_up_on_apt_after_a_bound_and_at_other_errors_at_once(worker):
    worker.write("apt_locked", "busy\n" * 30)
    done = worker.run("mount_bucket.sh", *MOUNT, "--apt_tries=4")
    assert done.returncode == 1 and "held by another program" in done.stderr
    assert len(worker.calls("sudo apt-get")) == 4
    worker.write("apt_locked", "")
    worker.write("apt_broken", "")
    done = worker.run("mount_bucket.sh", *MOUNT)
    assert done.returncode == 1 and "Unable to locate package" in done.stderr
    assert len(worker.calls("sudo apt-get")) == 5
    assert worker.calls("gcsfuse") == []


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


# --- tpu_vm.sh where machines, slices and gcloud fail ---

SLICES = [*RETRY, "--slices=2"]


def test_a_worker_that_does_not_answer_makes_the_machine_again_after_a_bound(pod):
    pod.trainer('[ "$starts" = 2 ] && exit 0\n' + SAVES)
    process = pod.start("tpu_vm.sh", "run", *RETRY, "--patience=3", *TRAINING)
    until(lambda: len(pod.read("ready.log")) == 2)
    pod.write("unreachable", "1\n")
    code, errors = finished(process)
    assert code == 0, errors
    assert "1 of 2 workers answer (3 of 3 times)" in errors
    verbs = [verb for verb in pod.verbs() if verb in ("create", "delete", "scp")]
    assert verbs == ["scp", "delete", "create", "scp"]


def test_machines_whose_workers_never_answer_are_not_made_for_ever(pod):
    pod.trainer(SAVES)
    process = pod.start("tpu_vm.sh", "run", *RETRY, "--patience=1", "--rebuilds=0", *TRAINING)
    until(lambda: len(pod.read("ready.log")) == 2)
    pod.write("unreachable", "0\n1\n")
    code, errors = finished(process)
    assert code == 1 and "workers of vdm did not answer, 1 times in a row" in errors
    assert "create" not in pod.verbs()
    assert "still there and costs money" in errors


def test_a_gcloud_that_hangs_is_ended_after_a_bound(pod):
    pod.trainer(SAVES)
    flags = ["--patience=1", "--rebuilds=0", "--ssh_timeout=5"]
    process = pod.start("tpu_vm.sh", "run", *RETRY, *flags, *TRAINING)
    until(lambda: len(pod.read("ready.log")) == 2)
    pod.write("hangs", "")
    pod.write("unreachable", "1\n")
    code, errors = finished(process)
    assert code == 1 and "1 of 2 workers answer (1 of 1 times)" in errors


@pytest.mark.parametrize("state", ["STOPPED", "STOPPING\nSTOPPED", "PREEMPTED"])
def test_a_spot_machine_that_google_stops_is_made_again(pod, state):
    pod.trainer('[ "$starts" = 2 ] && exit 0\n' + SAVES)
    process = pod.start("tpu_vm.sh", "run", *RETRY, *TRAINING)
    until(lambda: len(pod.read("ready.log")) == 2)
    pod.write("states", f"{state}\n")
    code, errors = finished(process)
    assert code == 0, errors
    assert [verb for verb in pod.verbs() if verb in ("create", "delete")] == ["delete", "create"]
    on_demand = [flag for flag in RETRY if flag != "--spot"]
    pod.write("states", "STOPPED\n")
    done = pod.run("tpu_vm.sh", "run", *on_demand, *TRAINING)
    assert done.returncode == 1 and "and not by preemption" in done.stderr


def test_a_slice_that_is_not_ready_counts_though_the_request_is_active(pod):
    pod.write("states", "ACTIVE\n")
    pod.write("vdm-1", "CREATING\n")
    process = pod.start("tpu_vm.sh", "run", *SLICES, *TRAINING)
    until(lambda: len(pod.read("pauses.log")) > 3)
    assert "scp" not in pod.verbs()  # it waits for the slice
    (pod.directory / "vdm-1").unlink()
    code, errors = finished(process)
    assert code == 0, errors
    assert "vdm is CREATING" in errors and "vdm is ACTIVE" in errors
    assert len(pod.read("starts.log")) == 2


def test_a_preempted_slice_makes_all_of_the_request_again(pod):
    pod.trainer('[ "$starts" = 2 ] && exit 0\n' + SAVES)
    pod.write("states", "ACTIVE\n")
    process = pod.start("tpu_vm.sh", "run", *SLICES, *TRAINING, AFTER_CREATE="ACTIVE")
    until(lambda: len(pod.read("ready.log")) == 2)
    pod.write("vdm-1", "PREEMPTED\n")
    code, errors = finished(process)
    assert code == 0, errors
    assert [verb for verb in pod.verbs() if verb in ("create", "delete")] == ["delete", "create"]


def test_a_command_that_reached_some_workers_only_has_failed(pod):
    """gcloud leaves out slices that it cannot reach, and reports success."""
    pod.write("states", "ACTIVE\n")
    pod.write("unreachable", "1\n")
    slices = [*MACHINE, "--slices=2"]
    done = pod.run("tpu_vm.sh", "run", *slices, *TRAINING)
    assert done.returncode == 1
    assert "1 of 2 workers answered that it succeeded" in done.stderr
    assert pod.read("starts.log") == []
    status = pod.run("tpu_vm.sh", "status", *slices).stdout.splitlines()
    assert status[0] == "ACTIVE" and status[-1] == "1 of 2 workers answer"
    done = pod.run("tpu_vm.sh", "stop", *slices)
    assert done.returncode == 1 and "1 of 2 workers" in done.stderr


def test_creation_that_fails_for_ever_ends_and_want_of_capacity_does_not(pod):
    pod.write("states", "MISSING\n")
    pod.write(
        "refusals",
        "ERROR: There is no more capacity in the zone\n" * 6 + "ERROR: PERMISSION_DENIED\n" * 3,
    )
    done = pod.run("tpu_vm.sh", "create", *RETRY)
    assert done.returncode == 1
    assert "gcloud: ERROR: PERMISSION_DENIED" in done.stderr
    assert "could not be made 3 times, and not for want of capacity" in done.stderr
    assert pod.verbs().count("create") == 9
    pod.write("refusals", "")
    done = pod.run("tpu_vm.sh", "create", *RETRY, "--queued", AFTER_CREATE="FAILED")
    assert done.returncode == 1 and "vdm has failed 3 times" in done.stderr


@pytest.mark.parametrize("code", [0, 4])
def test_when_done_the_logs_are_here_and_the_machine_is_deleted(pod, code):
    pod.trainer(f'echo "the last words of $WORKER"; exit {code}')
    flags = ["--delete_when_done", "--max_restarts=0", f"--logs={pod.directory}/my logs"]
    done = pod.run("tpu_vm.sh", "run", *RETRY, *flags, *TRAINING)
    assert done.returncode == code, done.stderr
    assert pod.verbs()[-1] == "delete"
    for worker in ("worker0", "worker1"):
        assert pod.read(f"my logs/{worker}.log")[0] == f"the last words of {worker}"


def test_without_the_flag_the_machine_stays_and_that_is_said(pod):
    done = pod.run("tpu_vm.sh", "run", *RETRY, *TRAINING)
    assert done.returncode == 0 and "delete" not in pod.verbs()
    assert "bash launch/tpu_vm.sh delete --name=vdm --zone=us-east5-a" in done.stderr


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--type=v5e-16"], ["gcloud", "--accelerator-type=v5litepod-16", "v2-alpha-tpuv5-lite"]),
        (["--type=v4", "--topology=2x2x4"], ["gcloud", "--type=v4", "--topology=2x2x4"]),
        (["--type=v5e", "--topology=4x4"], ["alpha", "--type=v5litepod", "--topology=4x4"]),
        (["--type=v5p", "--topology=4x4x8", "--slices=2"], ["alpha", "queued-resources"]),
    ],
)
def test_types_are_what_the_api_knows(pod, flags, words):
    planned = pod.run("tpu_vm.sh", "create", "--name=vdm", "--zone=z", *flags, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    create = shlex.split(planned.stdout.splitlines()[-1])
    assert all(any(word == each.removeprefix("--version=") for each in create) for word in words)


def test_variables_reach_the_run(pod):
    pod.trainer('echo "$WORKER $LIBTPU_INIT_ARGS" >>"$world/shown.log"')
    flags = ["--env=LIBTPU_INIT_ARGS=--xla_a=true --xla_b=1"]
    assert pod.run("tpu_vm.sh", "run", *RETRY, *flags, *TRAINING).returncode == 0
    assert sorted(pod.read("shown.log")) == [f"worker{i} --xla_a=true --xla_b=1" for i in (0, 1)]


def test_costs_are_of_chips_hours_and_the_price(pod):
    def cost(*flags):
        return pod.run("tpu_vm.sh", "cost", *flags).stdout.strip().rpartition(": ")[2]

    assert cost("--type=v5p-128", "--hours=24", "--price=4.2") == "$6451.20"  # 64 chips
    assert cost("--type=v6e-16", "--hours=1.5", "--price=2.7", "--slices=2") == "$129.60"
    assert cost("--type=v5p", "--topology=4x4x8", "--hours=1", "--price=0.001") == "$0.12"
    done = pod.run("tpu_vm.sh", "create", *MACHINE, "--price=4.2")
    assert done.returncode == 0
    pod.write("states", "MISSING\n")
    done = pod.run("tpu_vm.sh", "create", *MACHINE, "--poll=0", "--price=4.2")
    assert "vdm costs $33.60 an hour: 8 chips x 1 at $4.2" in done.stderr


# --- xpk.sh ---

WORKLOAD = [
    "--cluster=pods",
    "--workload=vdm-1",
    "--type=v5p-16",
    "--storage=shared",
    "--image=r/v",
]


@pytest.fixture
def cluster(world):
    (world.bin / "cp").symlink_to(shutil.which("cp"))
    for name in ("Dockerfile", "../pyproject.toml", "../README.md", "../LICENSE"):
        shutil.copy(ROOT / "launch" / name, world.clone / "launch" / name)
    return world.stand_in("xpk", "docker").commit()


def test_xpk_builds_an_image_of_what_is_committed_and_pods_install_nothing(cluster):
    flags = [*WORKLOAD, "--slices=2", "--project=p", "--zone=z", "--max_preemptions=9"]
    flags += ["--env=LIBTPU_INIT_ARGS=--a --b"]
    planned = cluster.run("xpk.sh", *flags, "--dry-run", *TRAINING)
    assert planned.returncode == 0, planned.stderr
    packed = cluster.directory / ".cache" / "vdm_jax" / "vdm-1"
    assert cluster.calls() == [] and not packed.exists()
    (cluster.clone / "uncommitted").touch()
    done = cluster.run("xpk.sh", *flags, *TRAINING)
    assert done.returncode == 0, done.stderr
    assert "not everything here is committed" in done.stderr
    plan = [shlex.split(line) for line in planned.stdout.splitlines()[-3:]]
    assert [shlex.split(call) for call in cluster.calls()] == plan
    build, push, call = plan
    commit = subprocess.check_output(["git", "-C", cluster.clone, "rev-parse", "HEAD"], text=True)
    image = f"r/v:{commit[:12]}"
    assert {"build", "-t", image} < set(build) and push == ["docker", "push", image]
    assert {"--tpu-type=v5p-16", "--num-slices=2", "--restart-on-exit-codes=75"} < set(call)
    assert {"--storage=shared", f"--docker-image={image}", "--max-restarts=9"} < set(call)
    assert "--env=LIBTPU_INIT_ARGS=--a --b" in call
    files = cluster.directory / "image"
    assert (files / "launch" / "supervise.sh").exists() and not (files / "uncommitted").exists()
    assert (files / ".venv" / "bin" / "python").exists()
    assert sorted(cluster.read("starts.log")) == [f"pod{i}: {TRAINED}" for i in (0, 1)]


def test_an_image_with_a_tag_is_taken_as_it_is(cluster):
    flags = [flag for flag in WORKLOAD if not flag.startswith("--image")]
    done = cluster.run("xpk.sh", *flags, "--image=localhost:5000/v:3", *TRAINING)
    assert done.returncode == 0, done.stderr
    (call,) = cluster.calls()
    assert "--docker-image=localhost:5000/v:3" in shlex.split(call)


@pytest.mark.parametrize(
    "event",
    [
        # A notice of preemption, which XPK passes on to the shell that it has started.
        f'kill -s TERM "$(cat "$world/pod0.shell")" & {SAVES}',
        'kill -s KILL "$PPID"; exit 1',  # the node is lost: 137
    ],
    ids=["notice", "lost"],
)
def test_xpk_starts_all_pods_again_after_a_preemption(cluster, event):
    cluster.trainer(f'[ "$starts" = 2 ] && exit 0\n[ $WORKER = pod0 ] || exit 0\n{event}')
    done = cluster.run("xpk.sh", *WORKLOAD, *TRAINING)
    assert done.returncode == 0, done.stderr
    assert cluster.read("jobset.log") == [f"pods ended: again {i}, failed 0" for i in (1, 0)]
    assert len(cluster.read("starts.log")) == 4
    assert cluster.read("saves.log") == ["pod0 saved"] * ("TERM" in event)


def test_xpk_ends_a_run_that_its_supervisor_has_given_up(cluster):
    cluster.trainer("[ $WORKER = pod0 ] || exit 0; exit 1")
    done = cluster.run("xpk.sh", *WORKLOAD, "--max_restarts=2", *TRAINING)
    assert done.returncode == 1
    assert cluster.read("jobset.log") == ["pods ended: again 1, failed 1"]
    assert cluster.read("starts.log").count(f"pod0: {TRAINED}") == 3


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
        ("tpu_vm.sh", ["create", "--name=v", "--zone=z", "--type=v5p"], "sizes such as 4x4x8"),
        ("tpu_vm.sh", [*TYPED, "--type=v5p-8", "--topology=2x2"], "goes with a family"),
        ("tpu_vm.sh", [*TYPED, "--type=v5p-8x"], "not a family and a number"),
        ("tpu_vm.sh", ["run", *RETRY, "--env=A B", "--", "-a"], "not of the form NAME=VALUE"),
        ("tpu_vm.sh", ["run", *MACHINE, "--delete_when_done", "--", "-a"], "only run --retry"),
        ("tpu_vm.sh", ["cost", "--type=v5p-8", "--hours=1"], "--price=DOLLARS"),
        (
            "tpu_vm.sh",
            ["cost", "--type=v5p-8", "--hours=1", "--price=x"],
            "--price=x: not a number",
        ),
        ("mount_bucket.sh", ["--directory=/a"], "--bucket=BUCKET is missing"),
        ("mount_bucket.sh", ["--bucket=b", "--directory=a"], "not a path from the root"),
        ("tpu_vm.sh", ["status", *MACHINE], "gcloud is not installed"),
        ("tpu_vm.sh", ["run", *MACHINE, "--dry-run", *TRAINING], "is no Git repository"),
        ("xpk.sh", [], "--cluster=NAME is missing"),
        ("xpk.sh", WORKLOAD[:1], "--workload=NAME is missing"),
        ("xpk.sh", WORKLOAD[:2], "--type=TYPE is missing"),
        ("xpk.sh", WORKLOAD[:3], "--storage=NAME is missing"),
        ("xpk.sh", WORKLOAD[:4], "--image=IMAGE is missing"),
        ("xpk.sh", WORKLOAD, "the arguments of training are missing"),
        ("xpk.sh", [*WORKLOAD, "--workload=Vdm_1", *TRAINING], "lower case letters, digits"),
        ("xpk.sh", [*WORKLOAD, "--workload=1vdm", *TRAINING], "a letter first"),
        ("xpk.sh", [*WORKLOAD, "--workload=vdm-", *TRAINING], "no hyphen last"),
        ("xpk.sh", [*WORKLOAD, f"--workload={'v' * 41}", *TRAINING], "it has 41"),
        ("xpk.sh", [*WORKLOAD, "--", "--workdir=gs://b"], "cannot write there"),
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
