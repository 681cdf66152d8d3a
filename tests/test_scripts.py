"""scripts/: each parses, tells its usage, turns its arguments into the launch line, and stops with one sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shell import BASH, ROOT, bash, executable, name_of, one_sentence

from trace_vlm.train.config import load_config

SCRIPTS = sorted(ROOT.glob("scripts/*.sh"))
SOURCED = {"common.sh", "launch.sh"}
TRAINING = sorted(path.name for path in SCRIPTS if "launch_training configs/" in path.read_text())


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / "environment_setup.sh", ROOT / ".ci/run"], ids=name_of)
def test_a_script_parses_and_can_be_started(script: Path) -> None:
    done = subprocess.run([BASH, "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (script.name in SOURCED) != os.access(script, os.X_OK)


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.name not in SOURCED | {"test.sh"}], ids=name_of)
def test_a_script_tells_its_usage_from_anywhere(script: Path, tmp_path: Path) -> None:
    done = bash(f"scripts/{script.name}", "--help", cwd=tmp_path, TRACE_VENV=str(tmp_path / "none"))
    assert done.returncode == 0
    assert f"bash scripts/{script.name}" in done.stdout or script.name == "check.sh"
    assert "#!" not in done.stdout
    assert "set -euo" not in done.stdout


@pytest.mark.parametrize("script", TRAINING)
def test_training_without_a_gpu_stops_with_one_sentence(script: str, tmp_path: Path) -> None:
    executable(tmp_path / "bin/nvidia-smi", "exit 9")
    said = one_sentence(bash(f"scripts/{script}", cwd=tmp_path, path=tmp_path / "bin"))
    assert "nvidia-smi lists none" in said and "quickstart.sh" in said and f"{script} --plan" in said


def test_the_plan_needs_no_gpu(tmp_path: Path) -> None:
    executable(tmp_path / "bin/nvidia-smi", "exit 9")
    executable(tmp_path / "venv/bin/python", 'echo "$@"')
    given = ["--plan", "--gpus", "16"]
    done = bash(
        "scripts/train_13b_fft.sh", *given, cwd=tmp_path, path=tmp_path / "bin", TRACE_VENV=str(tmp_path / "venv")
    )
    assert done.stdout == "-m trace_vlm.train.plan --config configs/train_13b_fft.yaml --gpus 16\n"


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder for the PATH: a node with four GPUs whose launchers print how they were called."""
    folder = tmp_path / "bin"
    executable(folder / "nvidia-smi", 'for i in 0 1 2 3; do echo "GPU $i: NVIDIA H100"; done')
    executable(folder / "scontrol", "echo node7; echo node8")
    executable(folder / "srun", "echo as started by srun: $*")
    for name in ("python", "deepspeed"):
        executable(tmp_path / "venv/bin" / name, "pwd; echo started")
    return folder


def launched(cluster: Path, script: str, *arguments: str, **variables: str) -> list[str]:
    done = bash(
        f"scripts/{script}",
        *arguments,
        cwd=cluster.parent,
        path=cluster,
        TRACE_VENV=str(cluster.parent / "venv"),
        **variables,
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()[0]
    assert shown.startswith("+ ")
    return shown.split()[1:]


def test_one_node_starts_through_deepspeed(cluster: Path) -> None:
    words = launched(cluster, "train_13b_fft.sh")
    module = ["--module", "trace_vlm.train.train", "--config", "configs/train_13b_fft.yaml"]
    assert words == ["deepspeed", "--no_local_rank", "--num_gpus", "4", *module]


def test_positions_become_keys_of_the_configuration(cluster: Path) -> None:
    given = ["mine.json", "out", "7b", "8", "2", "1e-5", "3", "2", "1", "250", "--set", "image_folder=/data/images"]
    words = launched(cluster, "train_13b_fft.sh", *given)
    assert words[2:4] == ["--num_gpus", "2"]
    here = cluster.parent
    overrides = words[words.index("--set") + 1 :]
    assert overrides == [
        f"data={here}/mine.json",  # relative to where the user stands, not to the repository
        f"output_dir={here}/out",
        "model.llm=lmsys/vicuna-7b-v1.5",
        "model.projector=liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5",
        "micro_batch_size=8",
        "global_batch_size=32",
        "learning_rate=1e-5",
        "epochs=3",
        "save_steps=250",
        "image_folder=/data/images",
    ]
    config = load_config(ROOT / "configs/train_13b_fft.yaml", overrides)  # every override is one that training takes
    assert (config.micro_batch_size, config.accumulation(processes=2)) == (8, 2)


def test_three_positions_are_data_images_and_output(cluster: Path) -> None:
    given = ["mine.json", "pictures", "out", "packing=true", "learning_rates.projector=1e-5"]
    words = launched(cluster, "train_7b_lora.sh", *given, GPUS="2", NCCL_DEBUG="INFO", MASTER_PORT="1234")
    assert words[2:6] == ["--num_gpus", "2", "--master_port", "1234"]
    here = cluster.parent
    overrides = words[words.index("--set") + 1 :]
    assert overrides == [
        f"data={here}/mine.json", f"image_folder={here}/pictures", f"output_dir={here}/out",
        "packing=true", "learning_rates.projector=1e-5",
    ]  # fmt: skip
    config = load_config(ROOT / "configs/train_7b_lora.yaml", overrides)
    assert config.packing and config.rate("projector") == 1e-5 and config.rate("llm") == 2e-6


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


def test_sigterm_reaches_the_processes_that_train_and_not_their_launcher(cluster: Path) -> None:
    here = cluster.parent
    # Stands in for training: told to end, it saves, which takes it a while.
    (here / "trace_vlm/train").mkdir(parents=True)
    (here / "trace_vlm/train/train.py").write_text(TRAINER)
    launcher = f"cd {here}; {sys.executable} -u -m trace_vlm.train.train --config x & wait $!; echo ended by $?; exit 1"
    executable(here / "venv/bin/deepspeed", launcher)
    command = [BASH, str(ROOT / "scripts/train_7b_lora.sh"), "a.json", "images", "out"]
    environment = {**os.environ, "PATH": f"{cluster}:{os.environ['PATH']}", "TRACE_VENV": str(here / "venv")}
    script = subprocess.Popen(command, cwd=here, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (here / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    script.terminate()
    assert script.wait(60) == 143
    assert (here / "saved").exists()


def test_empty_positions_keep_the_configurations_values(cluster: Path) -> None:
    words = launched(cluster, "train_7b_lora.sh", "", "", "", "", "", "1e-4")
    assert words[words.index("--set") + 1 :] == ["learning_rate=1e-4"]


def test_the_size_of_a_projector_that_starts_from_nothing_is_only_the_llms(cluster: Path) -> None:
    words = launched(cluster, "pretrain_projector.sh", "", "", "7b")
    assert words[words.index("--set") + 1 :] == ["model.llm=lmsys/vicuna-7b-v1.5"]


@pytest.mark.parametrize(("asked", "taken"), [({}, "2,3"), ({"GPUS": "1"}, "2"), ({"GPUS": "3"}, None)])
def test_the_visible_gpus_are_the_ones_that_train(cluster: Path, asked: dict[str, str], taken: str | None) -> None:
    """DeepSpeed heeds CUDA_VISIBLE_DEVICES on one node, unless it is told a number of GPUs."""
    executable(cluster.parent / "venv/bin/deepspeed", 'echo "visible: $CUDA_VISIBLE_DEVICES"')
    done = bash(
        "scripts/train_7b_lora.sh", "a.json", "imgs", "out", cwd=cluster.parent, path=cluster,
        TRACE_VENV=str(cluster.parent / "venv"), CUDA_VISIBLE_DEVICES="2,3", **asked,
    )  # fmt: skip
    if taken is None:
        assert "NUM_GPUS is 3, but there are 2 here" in one_sentence(done)
        return
    assert done.stdout.splitlines()[-1] == f"visible: {taken}" and "--num_gpus" not in done.stdout


def test_a_hostfile_s_nodes_are_all_taken(cluster: Path) -> None:
    (cluster.parent / "hosts").write_text("# both\nnode7 slots=4\n\nnode8 slots=4\n")
    words = launched(cluster, "train_7b_lora.sh", "a.json", "imgs", "out", HOSTFILE="hosts")
    assert words[4:8] == ["--num_nodes", "2", "--num_gpus", "4"]


def test_several_nodes_start_from_a_hostfile(cluster: Path) -> None:
    hostfile = cluster.parent / "hosts"
    hostfile.write_text("node7 slots=4\nnode8 slots=4\n")
    nodes = ["", "", "", "4", "1", "", "", "", "2"]
    words = launched(cluster, "train_13b_fft.sh", *nodes, HOSTFILE="hosts")
    assert words[:4] == ["deepspeed", "--no_local_rank", "--hostfile", str(hostfile)]
    assert words[4:8] == ["--num_nodes", "2", "--num_gpus", "4"]
    assert "global_batch_size=32" in words


SLURM = {"SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}


def test_a_slurm_allocation_starts_one_task_a_node(cluster: Path) -> None:
    words = launched(cluster, "train_13b_fft.sh", **SLURM)
    assert words[:7] == ["srun", "--nodes", "2", "--ntasks", "2", "--ntasks-per-node", "1"]
    text = " ".join(words)
    assert "torch.distributed.run --nnodes 2 --nproc-per-node 4 --rdzv-id 17 --rdzv-backend c10d" in text
    assert "--rdzv-endpoint node7:29500 -m trace_vlm.train.train --config" in text


def test_inside_a_slurm_step_no_second_one_is_started(cluster: Path) -> None:
    words = launched(cluster, "train_13b_fft.sh", **SLURM, SLURM_STEP_ID="0")
    assert words[1:3] == ["-m", "torch.distributed.run"]


def test_several_nodes_start_from_torchruns_variables(cluster: Path) -> None:
    nodes = ["", "", "", "", "", "", "", "", "2"]
    words = launched(cluster, "train_7b_lora.sh", *nodes, MASTER_ADDR="10.0.0.1", NODE_RANK="1", MASTER_PORT="1234")
    at = " ".join(words)
    assert "--nnodes 2 --nproc-per-node 4 --node-rank 1 --master-addr 10.0.0.1 --master-port 1234 -m trace_vlm" in at


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["", "", "", "", "", "", "", "", "2"], "NUM_NODES=2"),
        (["", "", "34b"], "MODEL_SIZE is 34b"),
        (["", "", "", "", "2"], "GRAD_ACC_STEPS needs BATCH_PER_GPU"),
        (["", "", "", "many"], "BATCH_PER_GPU is many"),
        (["x"] * 11, "ten values"),
    ],
    ids=["lonely node", "size", "accumulation alone", "no number", "too many"],
)
def test_a_mistake_in_the_positions_is_one_sentence(cluster: Path, arguments: list[str], said: str) -> None:
    venv = str(cluster.parent / "venv")
    done = bash("scripts/train_13b_fft.sh", *arguments, cwd=cluster.parent, path=cluster, TRACE_VENV=venv)
    assert said in one_sentence(done)


def test_training_without_deepspeed_says_how_to_install_it(cluster: Path) -> None:
    (cluster.parent / "venv/bin/deepspeed").unlink()
    if shutil.which("deepspeed"):
        pytest.skip("deepspeed is on the PATH")
    venv = str(cluster.parent / "venv")
    done = bash("scripts/train_13b_fft.sh", cwd=cluster.parent, path=cluster, TRACE_VENV=venv)
    assert "environment_setup.sh --gpu" in one_sentence(done)


@pytest.mark.parametrize(
    ("arguments", "said"), [([], "needs MODEL_PATH"), (["nano", "nowhere"], "found no point_questions.jsonl in")]
)
def test_evaluation_without_a_benchmark_is_one_sentence(arguments: list[str], said: str, tmp_path: Path) -> None:
    assert said in one_sentence(bash("scripts/eval_where2place.sh", *arguments, cwd=tmp_path))


def test_evaluation_answers_and_summarises_the_given_folder(tmp_path: Path) -> None:
    executable(tmp_path / "venv/bin/python", 'echo "$@"')
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/point_questions.jsonl").touch()
    given = ["my/model", "bench", "out", "--model-base", "base"]
    done = bash("scripts/eval_where2place.sh", *given, cwd=tmp_path, TRACE_VENV=str(tmp_path / "venv"))
    bench, answers = tmp_path / "bench", tmp_path / "out/answers.jsonl"
    assert done.stdout.splitlines() == [
        f"-m trace_vlm.eval.model_vqa --model my/model --data {bench} --answers {answers} --model-base base",
        f"-m trace_vlm.eval.summarize_vqa --answers {answers} --data {bench}",
    ]
