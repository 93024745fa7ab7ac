"""gpt_jax in the lm-evaluation-harness answers as the harness's `hf` answers for the same model, converted."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs lm_eval: pip install -c constraints.txt -e '.[eval]'")
pytest.importorskip("transformers", reason="needs transformers: pip install -c constraints.txt -e '.[oracles]'")

from gpt_jax import GPT
from gpt_jax.config import Attention, Bpe, Rope
from gpt_jax.config.errors import UserError
from gpt_jax.data.tokenizer import CharacterTokenizer, make_tokenizer
from gpt_jax.interop.hf import load_pretrained, save_pretrained
from gpt_jax.runs import harness
from gpt_jax.runs.write import write_run
from tests.tiny import random_params, tiny

pytestmark = pytest.mark.filterwarnings(
    "default::DeprecationWarning", "default::FutureWarning"
)  # torch's and lm_eval's
ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
CONTEXT, COUNT = 64, 200
TASKS = {
    "rolling": """
task: own_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "choice": """
task: own_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: ["yes", "no", " perhaps not"]
doc_to_target: 1
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "generation": """
task: own_generation
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: ["e"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """The harness's models `gpt_jax` and `hf`, and the folder in which the run is `run`."""
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("harness")
    tokenizer = make_tokenizer(Bpe(vocab_size=400), [TEXT])
    attention = Attention(heads=4, kv_heads=2, head_width=4, position=Rope())
    model = GPT(tiny(attention, vocab_size=tokenizer.vocab_size, width=16, context_length=CONTEXT))
    # Of a size that tokens cost a few nats, as in trained models; float32 sums of the texts are then good to 1e-4.
    save_pretrained(folder / "hf", model, random_params(model, size=0.5), tokenizer)
    write_run(folder / "run", *load_pretrained(folder / "hf"))
    own = harness.HarnessModel(workdir=str(folder / "run"), batch_size=8)
    return own, HFLM(pretrained=str(folder / "hf"), batch_size=8, device="cpu", dtype="float32"), folder


def texts(count: int, longest: int, seed: int = 0) -> list[str]:
    """Pieces of README, of any length from 1 on; some end in spaces, some have letters of several bytes."""
    rng = np.random.default_rng(seed)
    begins, lengths = rng.integers(0, len(TEXT) - longest, count), rng.integers(1, longest, count)
    return [TEXT[begin : begin + length] for begin, length in zip(begins, lengths, strict=True)]


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=args) for args in arguments]


def test_loglikelihoods_are_those_of_hf(both: tuple[Any, Any, Path]) -> None:
    own, hf, _ = both
    contexts, endings = texts(COUNT // 2, 260), texts(COUNT * 2, 60, seed=1)
    pairs = [(context, endings[2 * i + k]) for i, context in enumerate(contexts) for k in (0, 1)]
    pairs += [("", ending) for ending in endings[COUNT : COUNT + 20]]  # shared, too long, and empty contexts
    mine, theirs = own.loglikelihood(requests(*pairs)), hf.loglikelihood(requests(*pairs), disable_tqdm=True)
    assert len(mine) == len(pairs) >= COUNT
    np.testing.assert_allclose([a for a, _ in mine], [a for a, _ in theirs], atol=1e-4, rtol=0)
    assert [b for _, b in mine] == [b for _, b in theirs]


def test_rolling_loglikelihoods_are_those_of_hf(both: tuple[Any, Any, Path]) -> None:
    own, hf, _ = both
    documents = requests(*((text,) for text in ["", *texts(COUNT, 600, seed=2)]))
    mine, theirs = own.loglikelihood_rolling(documents), hf.loglikelihood_rolling(documents, disable_tqdm=True)
    windows = [math.ceil(len(own.tok_encode(request.args[0])) / CONTEXT) for request in documents]
    assert len(mine) > COUNT and max(windows) > 3
    difference = np.abs(np.array(mine) - np.array(theirs)) / np.maximum(windows, 1)
    assert difference.max() <= 1e-4


def test_generations_are_those_of_hf(both: tuple[Any, Any, Path]) -> None:
    own, hf, _ = both
    prompts = texts(COUNT, 200, seed=3)
    options = [{"until": ["\n\n"], "max_gen_toks": 20}, {"until": ["e", "."], "max_gen_toks": 20, "do_sample": False}]
    asked = requests(*((prompt, dict(options[i % 2])) for i, prompt in enumerate(prompts)))
    mine, theirs = own.generate_until(asked), hf.generate_until(asked, disable_tqdm=True)
    assert mine == theirs and len(set(mine)) > COUNT / 4


def test_sampling_takes_what_hf_takes(both: tuple[Any, Any, Path]) -> None:
    own, _, _ = both
    options = {"until": ["\n\n"], "max_gen_toks": 4, "do_sample": True}
    with_all, without = (own.generate_until(requests(("a", {**options, **more}))) for more in ({"top_k": 0}, {}))
    assert with_all == without  # 0 keeps all tokens


CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_conversations_are_those_of_hf(both: tuple[Any, Any, Path], tmp_path: Path) -> None:
    """Of a model with a template: their text, and where the last message is to be continued."""
    from lm_eval.models.huggingface import HFLM

    own, _, folder = both
    shutil.copytree(folder / "hf", tmp_path / "hf")
    settings = tmp_path / "hf" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": CHAT}))
    write_run(tmp_path / "run", *load_pretrained(tmp_path / "hf"))
    chats = harness.HarnessModel(workdir=str(tmp_path / "run"), batch_size=8)
    hf = HFLM(pretrained=str(tmp_path / "hf"), batch_size=8, device="cpu", dtype="float32")
    asked, answer = {"role": "user", "content": "Who is it? "}, {"role": "assistant", "content": " It is "}
    for history, opens in (([asked], True), ([asked, answer], False), ([asked, answer, asked], True)):
        text = chats.apply_chat_template(history, opens)
        assert text == hf.apply_chat_template(history, opens)
        assert chats.tok_encode(text) == hf.tok_encode(text)
    with pytest.raises(UserError, match="no chat template"):
        own.apply_chat_template([asked])


def test_the_command_takes_a_mesh_of_two_axes() -> None:
    from lm_eval._cli.utils import key_val_to_dict

    from experiments.harness import PAGE

    (written,) = re.findall(r'"(workdir=DIR,mesh=.*?)"', PAGE)
    assert key_val_to_dict(written) == {"workdir": "DIR", "mesh": "data=2,tensor=2"}


def test_a_user_mistake_is_a_sentence(both: tuple[Any, Any, Path], tmp_path: Path) -> None:
    own, _, folder = both
    with pytest.raises(UserError, match="no argument .pretrained."):
        harness.HarnessModel(workdir=str(folder / "run"), pretrained="gpt2")
    with pytest.raises(UserError, match="set max_gen_toks"):
        own.generate_until(requests(("a", {"max_gen_toks": CONTEXT})))
    with pytest.raises(UserError, match='without "num_beams"'):
        own.generate_until(requests(("a", {"max_gen_toks": 4, "num_beams": 2})))
    model = GPT(tiny(vocab_size=3))
    write_run(tmp_path / "letters", model, random_params(model), CharacterTokenizer("abc"))
    with pytest.raises(UserError, match="prefix_token_id=0"):
        harness.HarnessModel(workdir=str(tmp_path / "letters")).loglikelihood(requests(("", "ab")))
    named = harness.HarnessModel(workdir=str(tmp_path / "letters"), prefix_token_id=2)
    assert named.loglikelihood(requests(("", "ab"))) == named.loglikelihood(requests(("c", "ab")))


@pytest.mark.slow
def test_the_command_runs_own_tasks_and_gives_bits_per_byte(both: tuple[Any, Any, Path], tmp_path: Path) -> None:
    _, _, folder = both
    documents = texts(6, 150, seed=4)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    for name, task in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(task.replace("DATA", json.dumps(str(tmp_path / "data.jsonl"))))
    names = ",".join(f"own_{name}" for name in TASKS)

    def command(workdir: Path) -> Any:
        line = f"-m experiments.harness --model_args workdir={workdir} --batch_size 8 --tasks {names}"
        places = ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out.json")]
        arguments = [sys.executable, *line.split(), *places]
        return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300)

    done = command(folder / "run")
    assert done.returncode == 0, done.stderr
    results = json.loads(next(tmp_path.glob("out*.json")).read_text())["results"]
    own, _, _ = both
    nats = sum(own.loglikelihood_rolling(requests(*((text,) for text in documents))))
    bits = -nats / math.log(2) / sum(len(text.encode()) for text in documents)
    assert results["own_rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-6)
    assert {"acc,none", "acc_norm,none"} <= results["own_choice"].keys()
    assert "exact_match,none" in results["own_generation"]
    wrong = command(tmp_path / "none")
    assert wrong.returncode == 1 and wrong.stderr.strip().splitlines()[-1].startswith("harness: there is no")
