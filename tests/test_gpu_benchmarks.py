"""The benchmarks that wait for a GPU run on a CPU with tiny models, and a case that fails does not stop the others."""

import importlib
import json

import pytest
import torch
from shell import ROOT


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_llavas_cases_step_in_zero2_in_a_process_of_their_own(script, tmp_path):
    pytest.importorskip("deepspeed", reason="these two cases step in ZeRO-2")
    out = tmp_path / "train_gpu.json"
    script("train_gpu").main(["--tiny", "--only", "9", "10", "--out", str(out)])
    found = json.loads(out.read_text())
    packed, padded = found["cases"]
    for case in (padded, packed):
        assert "failed" not in case and case["tokens_per_second"] > 0 and case["peak_memory_gib"] > 0
    assert padded["padding_share"] > packed["padding_share"] == 0
    assert set(found["ratios"]) == {"trace-13b lora: packed (varlen) / padded"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure")
def test_without_a_gpu_only_the_tiny_models_run(script, tmp_path):
    with pytest.raises(SystemExit, match="no CUDA device"):
        script("train_gpu").main(["--out", str(tmp_path / "train_gpu.json")])


def test_qwens_cases_and_one_that_does_not_fit(script, tmp_path, monkeypatch):
    benchmark = script("train_gpu")
    cases = [case for case in benchmark.CASES if case.model == "qwen3-vl-4b" and not case.compiled]
    run_case = benchmark.run_case

    def run(case, *arguments):
        if not case.recompute:
            raise torch.OutOfMemoryError("no memory left")
        return run_case(case, *arguments)

    monkeypatch.setattr(benchmark, "run_case", run)
    benchmark.run_group([cases[2], *cases[:2]], True, tmp_path / "results.jsonl")
    failed, packed, padded = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert failed["failed"] == "no memory left"
    assert padded["padding_share"] > packed["padding_share"] == 0
    for case in (packed, padded):
        assert case["planned_gib"]["total"] * case["peak_by_plan"] == pytest.approx(case["peak_memory_gib"])
    assert set(benchmark.ratios([failed, packed, padded])) == {"qwen3-vl-4b lora: packed (varlen) / padded"}


@pytest.mark.parametrize(("name", "parameters"), [("qwen3-vl-4b", 4.44e9), ("qwen3-vl-8b", 8.77e9)])
def test_qwens_dimensions_are_the_published_ones(script, name, parameters):
    with torch.device("meta"):
        model = script("train_gpu").qwen3_vl(name, tiny=False).model
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(parameters, rel=1e-3)


def test_the_loop_and_recorded_attention_are_set_against_generate(script, tmp_path):
    benchmark, out = script("eval_throughput"), tmp_path / "static.json"
    arguments = "--static --preset tiny --batch-size 2 --new-tokens 4 --out"
    assert benchmark.main([*arguments.split(), str(out)]) == 0
    found = json.loads(out.read_text())
    assert len(found["seconds"]) == 6 and not found["failed"]
    assert found["static / ours"] > 0 and found["attention recorded / not"] > 0


@pytest.mark.parametrize(("static", "verdict"), [(1.2, "goes"), (1.4, "stays")])
def test_the_loop_goes_below_thirteen_tenths_of_the_speed(script, static, verdict):
    assert (
        script("eval_throughput").verdict({"ours": 1.0, "static": static, "static, compiled": 9.0})["our loop"]
        == verdict
    )
