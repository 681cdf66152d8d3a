"""scripts/: each parses, shows its usage, turns its arguments into the launch line, and names a mistake."""

import os
import shutil
import subprocess
import sys
import time

import pytest
from rendering import needs_gl
from shell import BASH, ROOT, bash, executable, one_sentence

from trace_vlm.train.config import load_config

SCRIPTS = sorted(ROOT.glob("scripts/*.sh"))
SOURCED = {"common.sh", "launch.sh"}
TRAINING = sorted(path.name for path in SCRIPTS if "launch_training configs/" in path.read_text())


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / "environment_setup.sh", ROOT / ".ci/run"], ids=str)
def test_a_script_parses_and_shows_its_usage_from_anywhere(script, tmp_path):
    done = subprocess.run([BASH, "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (script.name in SOURCED) != os.access(script, os.X_OK)
    if script.parent.name == "scripts" and script.name not in SOURCED | {"test.sh"}:
        done = bash(f"scripts/{script.name}", "--help", cwd=tmp_path, TRACE_VENV=str(tmp_path / "none"))
        assert done.returncode == 0 and done.stdout and "#!" not in done.stdout and "set -euo" not in done.stdout


@pytest.fixture
def cluster(tmp_path):
    """A folder for the PATH: a node with four GPUs whose launchers print how they were called."""
    for name, text in {
        "bin/nvidia-smi": 'for i in 0 1 2 3; do echo "GPU $i: NVIDIA H100"; done',
        "bin/scontrol": "echo node7; echo node8", "bin/srun": "echo as started by srun: $*",
        "venv/bin/python": 'echo "$@"', "venv/bin/deepspeed": 'echo "$@"',
    }.items():  # fmt: skip
        executable(tmp_path / name, text)
    return tmp_path / "bin"


def start(cluster, script, *arguments, **variables):
    venv = str(cluster.parent / "venv")
    return bash(f"scripts/{script}", *arguments, cwd=cluster.parent, path=cluster, TRACE_VENV=venv, **variables)


def launched(cluster, script, *arguments, **variables):
    """The words of the launch line, which the script shows first."""
    done = start(cluster, script, *arguments, **variables)
    assert done.returncode == 0 and done.stdout.startswith("+ "), done.stderr
    return done.stdout.splitlines()[0].split()[1:]


@pytest.mark.parametrize("script", TRAINING)
def test_training_without_a_gpu_is_refused_and_the_plan_works(script, cluster):
    executable(cluster / "nvidia-smi", "exit 9")
    message, config = one_sentence(start(cluster, script)), f"configs/{script.removesuffix('.sh')}.yaml"
    assert "quickstart.sh" in message and f"{script} --plan" in message and (ROOT / config).is_file()
    planned = start(cluster, script, "--plan", "--gpus", "16").stdout
    assert planned == f"-m trace_vlm.train.plan --config {config} --gpus 16\n"


PROJECTOR_7B = "model.projector=liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5"


@pytest.mark.parametrize(("script", "values", "overrides"), [
    ("train_13b_fft", "mine.json out 7b 8 2 1e-5 3 2 1 250 --set image_folder=/data/images",
     ["data=HERE/mine.json", "output_dir=HERE/out", "model.llm=lmsys/vicuna-7b-v1.5", PROJECTOR_7B,
      *"micro_batch_size=8 global_batch_size=32 learning_rate=1e-5 epochs=3 save_steps=250".split(),
      "image_folder=/data/images"]),
    ("train_7b_lora", "mine.json pictures out packing=true learning_rates.projector=1e-5",
     ["data=HERE/mine.json", "image_folder=HERE/pictures", "output_dir=HERE/out", "packing=true",
      "learning_rates.projector=1e-5"]),
    ("train_7b_lora", "- - - - - 1e-4", ["learning_rate=1e-4"]),  # empty: the configuration's value
    ("pretrain_projector", "- - 7b", ["model.llm=lmsys/vicuna-7b-v1.5"]),  # its projector has no size
])  # fmt: skip
def test_positions_become_keys_of_the_configuration(cluster, script, values, overrides):
    """Paths are relative to the user's folder, not to the repository; training accepts every override."""
    words = launched(cluster, f"{script}.sh", *("" if value == "-" else value for value in values.split()))
    launcher = f"deepspeed --no_local_rank --num_gpus {2 if script == 'train_13b_fft' else 4}"
    assert words[:8] == f"{launcher} --module trace_vlm.train.train --config configs/{script}.yaml".split()
    expected = [override.replace("HERE", str(cluster.parent)) for override in overrides]
    assert words[words.index("--set") + 1 :] == expected
    load_config(ROOT / f"configs/{script}.yaml", expected)


def test_the_visible_gpus_are_the_ones_that_train(cluster):
    """DeepSpeed uses CUDA_VISIBLE_DEVICES on one node unless it gets a number of GPUs."""
    executable(cluster.parent / "venv/bin/deepspeed", 'echo "visible: $CUDA_VISIBLE_DEVICES"')
    for variables, used in (({}, "2,3"), ({"GPUS": "1"}, "2")):
        done = start(cluster, "train_7b_lora.sh", "a.json", "imgs", "out", CUDA_VISIBLE_DEVICES="2,3", **variables)
        assert done.stdout.splitlines()[-1] == f"visible: {used}" and "--num_gpus" not in done.stdout
    assert "NUM_GPUS" in one_sentence(start(cluster, "train_7b_lora.sh", CUDA_VISIBLE_DEVICES="2,3", GPUS="3"))


SLURM = {"SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}
TORCHRUN = "-m torch.distributed.run --nnodes 2 --nproc-per-node 4"


def test_several_nodes_start_from_slurm_torchrun_or_a_hostfile(cluster):
    words = launched(cluster, "train_13b_fft.sh", **SLURM)
    assert words[:7] == ["srun", "--nodes", "2", "--ntasks", "2", "--ntasks-per-node", "1"]
    rendezvous = "--rdzv-id 17 --rdzv-backend c10d --rdzv-endpoint node7:29500 -m trace_vlm.train.train --config"
    assert f"{TORCHRUN} {rendezvous}" in " ".join(words)
    assert "srun" not in launched(cluster, "train_13b_fft.sh", **SLURM, SLURM_STEP_ID="0")  # inside a step
    variables = {"MASTER_ADDR": "10.0.0.1", "NODE_RANK": "1", "MASTER_PORT": "1234"}
    words = " ".join(launched(cluster, "train_7b_lora.sh", *[""] * 8, "2", **variables))
    assert f"{TORCHRUN} --node-rank 1 --master-addr 10.0.0.1 --master-port 1234 -m trace_vlm" in words
    (cluster.parent / "hosts").write_text("# both\nnode7 slots=4\n\nnode8 slots=4\n")
    words = launched(cluster, "train_7b_lora.sh", "a.json", "imgs", "out", HOSTFILE="hosts")
    hostfile = f"--hostfile {cluster.parent}/hosts --num_nodes 2 --num_gpus 4"
    assert words[:8] == f"deepspeed --no_local_rank {hostfile}".split()


TRAINER = """
import pathlib, signal, sys, time

def save(*_):
    time.sleep(1)
    pathlib.Path("saved").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
pathlib.Path("started").touch()
time.sleep(60)
"""


def test_sigterm_reaches_the_processes_that_train_and_not_their_launcher(cluster):
    here = cluster.parent
    (here / "trace_vlm/train").mkdir(parents=True)
    (here / "trace_vlm/train/train.py").write_text(TRAINER)  # instead of training: saving takes it a while
    for package in ("trace_vlm", "trace_vlm/train"):
        (here / package / "__init__.py").touch()
    launcher = f"cd {here}; {sys.executable} -u -m trace_vlm.train.train --config x & wait $!; echo ended by $?; exit 1"
    executable(here / "venv/bin/deepspeed", launcher)
    command = [BASH, str(ROOT / "scripts/train_7b_lora.sh"), "a.json", "images", "out"]
    environment = {**os.environ, "PATH": f"{cluster}:{os.environ['PATH']}", "TRACE_VENV": str(here / "venv")}
    script = subprocess.Popen(command, cwd=here, env=environment, stdout=subprocess.DEVNULL)
    while not (here / "started").exists() and script.poll() is None:
        time.sleep(0.02)
    script.terminate()
    assert script.wait(60) == 143 and (here / "saved").exists()


@pytest.mark.parametrize("values, name", [
    ("- - - - - - - - 2", "NUM_NODES"), ("- - 34b", "MODEL_SIZE"), ("- - - - 2", "GRAD_ACC_STEPS"),
    ("- - - many", "BATCH_PER_GPU"), ("x x x x x x x x x x x", "11"),
])  # fmt: skip
def test_a_mistake_in_the_positions_is_named(cluster, values, name):
    given = ("" if value == "-" else value for value in values.split())
    assert name in one_sentence(start(cluster, "train_13b_fft.sh", *given))


@pytest.mark.skipif(shutil.which("deepspeed") is not None, reason="deepspeed is on the PATH")
def test_training_without_deepspeed_is_refused(cluster):
    (cluster.parent / "venv/bin/deepspeed").unlink()
    assert "environment_setup.sh --gpu" in one_sentence(start(cluster, "train_13b_fft.sh"))


def test_evaluation_answers_and_summarizes_the_given_folder(cluster):
    assert "MODEL_PATH" in one_sentence(start(cluster, "eval_where2place.sh"))
    assert "nowhere" in one_sentence(start(cluster, "eval_where2place.sh", "nano", "nowhere"))
    bench, answers = cluster.parent / "bench", cluster.parent / "out/answers.jsonl"
    bench.mkdir()
    (bench / "point_questions.jsonl").touch()
    done = start(cluster, "eval_where2place.sh", "my/model", "bench", "out", "--model-base", "base")
    assert done.stdout.splitlines() == [
        f"-m trace_vlm.eval.model_vqa --model my/model --data {bench} --answers {answers} --model-base base",
        f"-m trace_vlm.eval.summarize_vqa --answers {answers} --data {bench}",
    ]


def test_a_dry_run_prints_the_command_of_every_node_and_needs_no_gpu(cluster):
    executable(cluster / "nvidia-smi", "exit 9")
    assert "--dry-run" in one_sentence(start(cluster, "train_13b_fft.sh", "a.json", "b", "c"))
    one = start(cluster, "train_13b_fft.sh", "--dry-run", "a.json", "b", "c", "epochs=2", GPUS="8").stdout
    assert (
        one.startswith("+ deepspeed --no_local_rank --num_gpus 8 --module trace_vlm.train.train") and "epochs=2" in one
    )
    assert "--dry-run" not in one and len(one.splitlines()) == 1
    two = start(cluster, "train_13b_fft.sh", "a.json", "b", "c", "--dry-run", GPUS="8", NNODES="2").stdout.splitlines()
    assert [line.partition(":")[0] for line in two] == ["on node 0", "on node 1"]
    assert "--node-rank 1 --master-addr ADDRESS_OF_NODE_0" in two[1] and "data=" in two[1]


def test_a_mistake_shows_before_processes_start(cluster):
    executable(cluster.parent / "venv/bin/python", 'echo "error: data: the file x does not exist" >&2; exit 2')
    done = start(cluster, "train_13b_fft.sh", "x", "b", "c")
    assert one_sentence(done) == "error: data: the file x does not exist\n"


@needs_gl  # the quickstart looks for a renderer first
def test_what_the_quickstart_runs_in_the_background_ends_with_it(tmp_path):
    """Fine-tuning without reasoning fails while the one with reasoning runs."""
    job = f"trap 'touch {tmp_path}/ended; exit' TERM; touch {tmp_path}/begun; for i in {{1..6000}}; do sleep 0.01; done"
    executable(tmp_path / "venv/bin/python", f"""case $* in
        *trace_vlm*train/cor*) {job} ;;
        *trace_vlm*train/no_cor*) until [[ -e {tmp_path}/begun ]]; do sleep 0.01; done; exit 3 ;;
        "-m trace_vlm"*) ;;
        *) exec {sys.executable} "$@" ;;
    esac""")  # fmt: skip
    done = bash("scripts/quickstart.sh", tmp_path / "out", cwd=tmp_path, TRACE_VENV=str(tmp_path / "venv"))
    assert done.returncode == 3, done.stderr
    limit = time.monotonic() + 120
    while not (tmp_path / "ended").exists():
        assert time.monotonic() < limit, "the job in the background was not ended"
        time.sleep(0.01)
