"""Items per second of our predictions against lm-eval's command line: same model, same items, same batch size.

`whole`: both as processes, from start to written answers. `loop`: in one process, the model loaded once, lm-eval's own model class
against ours in lm-eval's evaluator. Both sides take turns; medians over rounds. Answers are compared item by item.

    python benchmarks/evaluate.py --model /path/to/folder --data /path/to/data/files --limit 16 --tasks gsm8k truthfulqa cmmlu
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

OURS = """
import sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
from mtkv.config.evaluation import EvaluationConfig
from mtkv.config.models import DATE
from mtkv.stages.predict import ModelSource, predict
folder, dtype, data, settings, out, chat, names = sys.argv[1:]
names = names.split(",")
outputs = {name: Path(out) / f"{name}.parquet" for name in names}
settings = EvaluationConfig.model_validate_json(settings)
load = lambda folder: (AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), AutoTokenizer.from_pretrained(folder))
predict(ModelSource(Path(folder), load, dtype, DATE if chat == "1" else None), Path(data), settings, outputs)
"""


def prepare(arguments, folder):
    """Test files of the study and lm-eval task files over the very same records."""
    from mtkv.config.data import DataConfig
    from mtkv.data.mixture import _write_tests

    config = DataConfig(mixture="multi_reasoning_cot_direct", folder=arguments.data, test_items=arguments.limit)
    problems = _write_tests(config, arguments.tasks, folder / "data")[2]
    if problems:
        raise SystemExit(problems)
    return write_tasks(arguments, folder)


def write_tasks(arguments, folder):
    import pyarrow.parquet as pq

    from mtkv.config.evaluation import EvaluationConfig
    from mtkv.evaluate.lm_eval_tasks import LM_EVAL_FOLDER, RECIPES, _by_part, load_benchmark

    names = []
    (folder / "tasks").mkdir()
    for dataset in arguments.tasks:
        config = EvaluationConfig(num_fewshot=arguments.num_fewshot)
        task = config.task_of(dataset)
        rows = _by_part(pq.read_table(folder / "data" / "test" / f"{dataset}.parquet").to_pylist())
        shown = _by_part(pq.read_table(folder / "data" / "examples" / f"{dataset}.parquet").to_pylist())
        for part, loaded in zip(rows, load_benchmark(task, dataset, folder / "data", config), strict=True):
            splits = {loaded.config.test_split or loaded.config.validation_split: rows[part]}
            example_split = loaded.config.fewshot_split or loaded.config.training_split
            if part in shown and example_split:
                splits[example_split] = shown[part]
            files = {}
            for split, records in splits.items():
                files[split] = str(folder / "tasks" / f"{dataset}-{part}-{split}.jsonl")
                Path(files[split]).write_text("".join(f"{row['document']}\n" for row in records), encoding="utf-8")
            names.append(f"local_{dataset}_{part}")
            own = {
                "include": str(LM_EVAL_FOLDER / RECIPES[task].file.format(part=part)),
                "task": names[-1],
                "tag": None,
            }
            own |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
            (folder / "tasks" / f"{names[-1]}.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    return names


def command_line(arguments, folder, names, batch_size, out):
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf"]
    command += ["--model_args", f"pretrained={folder / 'model'},dtype={arguments.dtype}", "--tasks", ",".join(names)]
    command += ["--include_path", str(folder / "tasks"), "--batch_size", str(batch_size), "--device", "cpu"]
    command += ["--gen_kwargs", f"max_gen_toks={arguments.max_new_tokens}", "--log_samples", "--output_path", str(out)]
    if arguments.num_fewshot is not None:
        command += ["--num_fewshot", str(arguments.num_fewshot)]
    return command + (["--apply_chat_template"] if arguments.chat else [])


def settings_of(arguments):
    from mtkv.config.evaluation import EvaluationConfig

    return EvaluationConfig(
        batch_size=arguments.batch_size, max_new_tokens=arguments.max_new_tokens, num_fewshot=arguments.num_fewshot
    )


def timed(command, folder):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    start = now()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return since(start)


def now():
    """Seconds on the clock, and of processor time of this process and of those that it started and that have ended."""
    used = os.times()
    return time.perf_counter(), used.user + used.system + used.children_user + used.children_system


def since(start):
    return tuple(round(after - before, 2) for before, after in zip(start, now(), strict=True))


def medians(values):
    return tuple(statistics.median(column) for column in zip(*values, strict=True))


def whole(arguments, folder, names):
    ours = [sys.executable, "-c", OURS, str(folder / "model"), arguments.dtype, str(folder / "data")]
    ours += [settings_of(arguments).model_dump_json(), str(folder), str(int(arguments.chat)), ",".join(arguments.tasks)]
    sides = {"ours": ours}
    for size in dict.fromkeys((arguments.batch_size, *arguments.also)):
        sides[f"cli, batch {size}"] = command_line(arguments, folder, names, size, folder / f"out{size}")
    seconds = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side, command in sides.items():
            seconds[side].append(timed(command, folder))
    return seconds


def loops(arguments, folder):
    """Seconds by dataset and side, and how many answers are not the same."""
    import torch
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mtkv.evaluate.lm_eval_model import EvaluationModel
    from mtkv.stages.predict import _quiet, study_tasks

    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=arguments.dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    found = {}
    with _quiet():
        sides = {
            "ours": EvaluationModel(model, tokenizer, arguments.batch_size),
            "hflm": HFLM(pretrained=model, tokenizer=tokenizer, batch_size=arguments.batch_size),
        }
    for dataset in arguments.tasks:
        seconds, answers = {side: [] for side in sides}, {}
        for _ in range(arguments.rounds):
            for side, language_model in sides.items():
                tasks = study_tasks(dataset, folder / "data", settings_of(arguments))
                for task in tasks:
                    if task.OUTPUT_TYPE == "generate_until":
                        task.set_config("generation_kwargs", {"max_gen_toks": arguments.max_new_tokens}, update=True)
                named = {str(task.config.task): task for task in tasks}
                start = now()
                with _quiet():
                    results = evaluate(
                        language_model, {"tasks": named}, bootstrap_iters=0, apply_chat_template=arguments.chat,
                        fewshot_as_multiturn=arguments.chat,
                    )  # fmt: skip
                seconds[side].append(since(start))
                answers[side] = [sample["filtered_resps"] for name in named for sample in results["samples"][name]]
        found[dataset] = seconds, differing(answers["ours"], answers["hflm"])
    return found


def differing(mine, theirs):
    """Number of answers that differ; log-likelihoods by more than 0.001 nats."""

    def same(one, other):
        if isinstance(one[0], str):
            return one == other
        return all(abs(float(a[0]) - float(b[0])) < 1e-3 for a, b in zip(one, other, strict=True))

    return sum(not same(one, other) for one, other in zip(mine, theirs, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="folder of data files, as data.folder of a study")
    parser.add_argument("--tasks", nargs="+", default=["gsm8k", "truthfulqa", "cmmlu"])
    parser.add_argument("--limit", type=int, default=16, help="questions per dataset")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--also", type=int, nargs="*", default=[], help="other batch sizes of the command line; its default is 1"
    )
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--num-fewshot", type=int, default=None)
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--context", type=int, help="another max_position_embeddings, for models with a small one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip", nargs="*", default=[], choices=["whole", "loop"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "model").mkdir()
        for file in Path(arguments.model).iterdir():
            (folder / "model" / file.name).symlink_to(file.resolve())
        if arguments.context:
            config = json.loads((folder / "model" / "config.json").read_text()) | {
                "max_position_embeddings": arguments.context
            }
            (folder / "model" / "config.json").unlink()
            (folder / "model" / "config.json").write_text(json.dumps(config))
        names = prepare(arguments, folder)
        items = arguments.limit * len(arguments.tasks)
        if "loop" not in arguments.skip:
            for dataset, (seconds, different) in loops(arguments, folder).items():
                mine, theirs = medians(seconds["ours"]), medians(seconds["hflm"])
                ratios = " / ".join(f"{other / own:.2f}" for own, other in zip(mine, theirs, strict=True))
                print(f"loop  {dataset:12} ours {mine} s  lm-eval {theirs} s (clock, processor)  ratio {ratios}  "
                      f"answers that differ: {different} of {arguments.limit}  {seconds}", flush=True)  # fmt: skip
        if "whole" not in arguments.skip:
            seconds = whole(arguments, folder, names)
            mine = medians(seconds["ours"])
            for side, values in seconds.items():
                middle = medians(values)
                ratios = " / ".join(f"{other / own:.2f}" for own, other in zip(mine, middle, strict=True))
                print(f"whole {side:16} {middle} s (clock, processor)  {items / middle[0]:.2f} items/s  "
                      f"ours is {ratios} times as fast  {values}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
