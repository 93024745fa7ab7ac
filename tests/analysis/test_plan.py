"""What runs here must run there: the real programs, compiled for a TPU that isn't."""

import dataclasses
import importlib.util
import json

import pytest

from configs import llama
from gpt_jax.analysis.cost import count_parameters, training_flops_per_token
from gpt_jax.analysis.forecast import to_json
from gpt_jax.analysis.plan import plan_train_step, resolved_without_text, visible_share
from gpt_jax.analysis.plan_decode import plan_decode
from gpt_jax.analysis.plan_page import page
from gpt_jax.analysis.topology import needed_bytes, tpu_mesh
from gpt_jax.config import (
    Adamw,
    Attention,
    BlockConfig,
    Config,
    Copy,
    GatedMlp,
    LinearDecay,
    ModelConfig,
    Muon,
    RmsNorm,
    Rope,
    Score,
    Text,
    Train,
    Window,
    pattern,
)
from gpt_jax.config.conversion import from_config_dict

LOCAL = BlockConfig(
    Attention(4, kv_heads=2, mask=Window(32), position=Rope(), score=Score(qk_norm=RmsNorm())), GatedMlp(256)
)
FULL = dataclasses.replace(
    LOCAL, attention=dataclasses.replace(LOCAL.attention, mask=dataclasses.replace(Attention(1)).mask)
)
MODEL = ModelConfig(
    256, 128, 128, pattern("LGLG", L=LOCAL, G=FULL), dtype="bfloat16", scan=True, remat="dots", kernel="splash"
)
CONFIG = Config(MODEL, Text(), Muon(), Train(100, 16, accumulate=2, z_loss=1e-4), LinearDecay())
PARAMETER_BYTES = 4 * (4 * (128 * 128 * 2 + 128 * 64 * 2 + 3 * 128 * 256) + 256 * 128)


@pytest.fixture(scope="module")
def forecast():
    return plan_train_step(CONFIG, "v5e:2x2", price=1.2)


@pytest.mark.plan
def test_the_train_step_compiles_for_a_tpu_slice(forecast):
    assert (forecast.chip, forecast.chips, forecast.hosts, forecast.mesh) == ("v5e", 4, 1, {"data": 4})
    assert {c.kind for c in forecast.communication} == {"all-reduce"}
    assert all(c.between_hosts == 0 for c in forecast.communication)
    # Parameters and Muon's momentum, or Adam's two moments for the few others, on every chip.
    assert PARAMETER_BYTES <= forecast.memory["parameters"] < 1.1 * PARAMETER_BYTES
    assert PARAMETER_BYTES < forecast.memory["optimizer"] < 2 * PARAMETER_BYTES
    assert forecast.fits and sum(forecast.memory.values()) < 0.1 * forecast.usable


@pytest.mark.plan
def test_the_times_of_a_step_add_up(forecast):
    assert sum(forecast.work.values()) == pytest.approx(forecast.seconds)
    assert forecast.flops == training_flops_per_token(MODEL, 128) * 16 * 128
    assert forecast.share == pytest.approx(forecast.flops / (forecast.seconds * 4 * 197e12))
    assert 0 < forecast.share < 1
    assert forecast.hours == pytest.approx(100 * forecast.seconds / 3600)
    assert forecast.cost == pytest.approx(forecast.hours * 4 * 1.2)
    assert {name.split("_")[2] for name in forecast.kernels} == {"fwd", "dq", "dkv"}
    # Each gradient is summed over the chips, at two bytes or more.
    assert forecast.communication[0].sent > 1.5 * count_parameters(MODEL)[0] * 2


@pytest.mark.plan
def test_rows_divided_by_positions_compile_for_a_tpu():
    """Keys go from neighbour to neighbour, of a window to one; nothing gathers them."""
    model = dataclasses.replace(MODEL, kernel=None)  # a ring takes the place of the kernel
    divided = plan_train_step(dataclasses.replace(CONFIG, model=model, mesh="sequence=4"), "v5e:2x2")
    assert {c.kind for c in divided.communication} == {"collective-permute", "all-reduce"}
    assert divided.fits


@pytest.mark.plan
@pytest.mark.slow
def test_rows_of_128k_tokens_fit_with_a_billion_parameters():
    config = llama.get_config("1b")
    config.mesh, config.model.context_length, config.model.remat = "fsdp=4,sequence=4", 2**17, "full"
    config.train.batch_size, config.train.accumulate = 4, 1
    forecast = plan_train_step(from_config_dict(Config, config), "v5e:4x4")
    assert forecast.fits and sum(forecast.memory.values()) < 15.75 * 2**30


@pytest.mark.plan
def test_a_plan_is_strict_json_and_a_page(forecast):
    (record,) = json.loads(to_json([forecast]), parse_constant=pytest.fail)["forecasts"]
    assert record["tokens_per_second"] == pytest.approx(forecast.tokens / forecast.seconds)
    assert len(record["buffers"]) == 3
    text = page([forecast], "python -m experiments.plan --topology=v5e:2x2")
    assert "http" not in text.replace("http-equiv", "") and "fits" in text and "v5e:2x2" in text


@pytest.mark.plan
def test_prefill_and_the_decode_loop_compile_for_a_tpu():
    prefill, loop = plan_decode(CONFIG, "v5e:2x2", rows=4, prompt=16, new=32)
    assert (prefill.tokens, loop.tokens) == (64, 4)
    assert PARAMETER_BYTES <= loop.memory["parameters"] < 1.1 * PARAMETER_BYTES
    # Keys and values of two layers with the whole row and two with a window of 32, in bfloat16, of one row.
    assert loop.memory["cache"] == pytest.approx(2 * 2 * 2 * 32 * (2 * 47 + 2 * 32), rel=0.05)
    assert loop.roofline >= (loop.memory["parameters"] + loop.memory["cache"]) / 819e9
    assert not [note for note in loop.notes if "how often" in note]


@pytest.mark.plan
def test_a_mesh_divides_parameters_and_says_what_it_sends():
    forecast = plan_train_step(dataclasses.replace(CONFIG, mesh="fsdp=-1", optimizer=Adamw()), "v5e:2x2")
    assert forecast.memory["parameters"] < 0.3 * PARAMETER_BYTES
    assert "all-gather" in {c.kind for c in forecast.communication}


@pytest.mark.plan
def test_an_unknown_topology_is_refused():
    with pytest.raises(ValueError, match='no topology "v5e:2x3"'):
        tpu_mesh("v5e:2x3")


@pytest.mark.plan
def test_rows_that_the_mesh_cannot_divide_are_refused():
    with pytest.raises(ValueError, match="make it a multiple of 8"):
        plan_train_step(dataclasses.replace(CONFIG, train=Train(100, 12, accumulate=2)), "v5e:2x2")


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gpt_jax\[plan\]"):
        tpu_mesh("v5e:2x2")


def test_a_plan_reads_no_text():
    unread = dataclasses.replace(CONFIG, data=Text(path="no/such/file.txt"))
    resolved, length = resolved_without_text(unread)
    assert (resolved.schedule.steps, length) == (100, 128)
    with pytest.raises(ValueError, match=r"--config\.model\.vocab_size=N"):
        resolved_without_text(dataclasses.replace(unread, model=dataclasses.replace(MODEL, vocab_size=None)))


def test_a_task_tells_its_vocabulary_and_the_length_of_its_rows():
    task = Copy(length=5, symbols=7)
    unknown = dataclasses.replace(CONFIG, data=task, model=dataclasses.replace(MODEL, vocab_size=None))
    resolved, length = resolved_without_text(unknown)
    assert resolved.model.vocab_size == 8
    assert length == 10


def test_kernels_skip_the_blocks_that_no_query_sees():
    full = dataclasses.replace(MODEL, blocks=(FULL,), context_length=1024)
    local = dataclasses.replace(MODEL, blocks=(LOCAL,), context_length=2048)
    assert visible_share(full, 1024) == 3 / 4  # blocks of 512
    assert visible_share(local, 2048) == 7 / 16  # the diagonal and the block before it


def test_the_compilers_message_tells_the_bytes_that_a_program_needs():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (16.50G) exceeds"
        " available HBM (15.75G)."
    )
    assert needed_bytes(message) == 16.5 * 2**30
    assert needed_bytes("INTERNAL: something else (2.00G)") is None


@pytest.mark.plan
@pytest.mark.slow
def test_what_does_not_fit_is_explained():
    layers = (BlockConfig(Attention(8, position=Rope()), GatedMlp(2048)),) * 4
    model = ModelConfig(512, 1024, 512, layers, dtype="bfloat16", scan=True)
    c = dataclasses.replace(CONFIG, model=model, train=Train(100, 1024))
    forecast = plan_train_step(c, "v5e:2x2")
    assert not forecast.fits and forecast.seconds is None and forecast.cost is None
    assert sum(forecast.memory.values()) > forecast.usable
    largest = forecast.buffers[0]
    assert largest.line.startswith("gpt_jax/model/mlp.py:") and "2048]" in largest.array
    assert largest.remedy == "--config.model.remat=dots"
    assert any("v5p:2x2x1" in note for note in forecast.notes)
    assert "does not fit" in page([forecast], "")
