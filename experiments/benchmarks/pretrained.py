"""A published model: tokens per second of decoding, compared to the rate at which the machine reads memory and to
`transformers` with the same weights, in alternation within one process; and the peak memory of loading it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.decode import READ_FLOATS
from experiments.benchmarks.timing import Arm, summary
from gpt_jax.config import Dtype
from gpt_jax.data.tokenizer import as_hugging_face
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Greedy
from gpt_jax.interop.hf import load_pretrained, save_pretrained

PROMPT, NEW_TOKENS = 32, 32
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
LOADING = """
import re, sys, jax, gpt_jax
if sys.argv[1].endswith(".gguf"):
    import gpt_jax.interop.gguf
jax.numpy.zeros(1).block_until_ready()

def held(what):
    return 1024 * int(re.search(what + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

before = held("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # resets the peak
params = gpt_jax.load_pretrained(sys.argv[1])[1]
print((held("VmHWM") - before) / sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


def run(rounds: int, model: str) -> dict[str, Any]:
    """Tokens per second of each implementation and type, ratios, and on Linux the peak memory of loading.

    The time of decoding alone is the difference between generating one token and generating more. `share_of_read_rate`
    is (bytes of the weights · tokens per second) / (bytes per second of a sum over 256 MiB), from medians.
    """
    arms: dict[str, tuple[Arm, float]] = {}  # name → (call that returns seconds, its bytes or tokens)
    data, total = jnp.ones(READ_FLOATS, jnp.float32), jax.jit(jnp.sum)
    arms["read"] = lambda: _seconds(lambda: jax.block_until_ready(total(data))), data.nbytes
    weights: dict[str, int] = {}
    for dtype in DTYPES:
        loaded, params, tokenizer = load_pretrained(model, dtype)
        weights[dtype] = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        V = loaded.config.vocab_size if tokenizer is None else as_hugging_face(tokenizer).vocab_size
        prompt = np.random.default_rng(0).integers(0, V, (1, PROMPT))
        arms[f"gpt_jax_{dtype}"] = _ours(loaded, params, prompt), NEW_TOKENS
        if importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
            with tempfile.TemporaryDirectory() as folder:
                save_pretrained(folder, loaded, params)
                arms[f"transformers_{dtype}"] = _theirs(folder, dtype, prompt), NEW_TOKENS
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for arm, _ in arms.values():
        arm()
    for _ in range(rounds):
        for name, (arm, _) in arms.items():
            seconds[name].append(arm())
    results: dict[str, Any] = {} if sys.platform != "linux" else {"peak_of_loading_over_weights": _loading(model)}
    for name, (_, amount) in arms.items():
        results[name] = summary(seconds[name])
        unit = "bytes" if name == "read" else "tokens"
        results[name][f"{unit}_per_second"] = amount / results[name]["median_seconds"]
        results[name][f"best_{unit}_per_second"] = amount / results[name]["best_seconds"]
    for name in arms:
        if (kind := name.rpartition("_")[2]) in weights:
            rate = results[name]["tokens_per_second"] * weights[kind]
            results[name]["share_of_read_rate"] = rate / results["read"]["bytes_per_second"]
    for dtype in DTYPES:
        if (theirs := f"transformers_{dtype}") in results:
            ratio = results[theirs]["median_seconds"] / results[f"gpt_jax_{dtype}"]["median_seconds"]
            results[f"times_transformers_{dtype}"] = ratio
    return results


def _ours(model: Any, params: Any, prompt: np.ndarray) -> Arm:
    def once(new: int) -> float:
        options: Any = {"key": jax.random.key(0), "max_new_tokens": new, "sampler": Greedy()}
        return _seconds(lambda: generate(model, params, prompt, **options))

    return lambda: once(NEW_TOKENS + 1) - once(1)


def _theirs(folder: str, dtype: str, prompt: np.ndarray) -> Arm:
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    ids = torch.from_numpy(prompt)

    def once(new: int) -> float:
        options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        return _seconds(lambda: model.generate(ids, **options))

    return lambda: once(NEW_TOKENS + 1) - once(1)


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _loading(model: str) -> float:
    """The peak memory of loading in a new process, beyond that of its imports, over the size of the parameters."""
    done = subprocess.run([sys.executable, "-c", LOADING, model], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)
