"""Removing heads with ``prune_heads`` of transformers 4; run by an interpreter that has it.

    python with_transformers4.py JOB ANSWERS

It imports nothing of this project, which needs transformers 5. The job, written with ``torch.save``, has a ``folder``
in the format of ``save_pretrained``, the model ``architecture``, a ``batch``, ``cases`` of heads, and how to time.
"""

import copy
import sys
import tempfile
import time

import torch
import transformers

transformers.logging.set_verbosity_error()


def main():
    """Answer the job."""
    job = torch.load(sys.argv[1])
    torch.set_num_threads(job["threads"])
    architecture = getattr(transformers, job["architecture"])
    dense, loading = architecture.from_pretrained(job["folder"], output_loading_info=True)
    dense.eval()
    problems = [str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in loading[kind]]
    answers = {"outputs": outputs(dense, job["batch"]), "problems": problems, "cases": {}}
    for name, heads in job["cases"].items():
        try:
            answers["cases"][name] = answer(architecture, dense, heads, job)
        except Exception as error:
            answers["cases"][name] = {"error": describe(error)}
    torch.save(answers, sys.argv[2])


def answer(architecture, dense, heads, job):
    """Prune the heads of a copy, run it, time it and reload it."""
    seconds = []
    for _ in range(job["surgeries"]):
        compact = copy.deepcopy(dense)
        start = time.perf_counter()
        compact.prune_heads(heads)
        seconds.append(time.perf_counter() - start)
    found = {"seconds": seconds, "num_heads": count_heads(compact)}
    try:
        found["outputs"] = outputs(compact, job["batch"])
    except Exception as error:
        return {**found, "error": describe(error)}
    found["times"] = interleave({"dense": dense, "compact": compact}, job)
    with tempfile.TemporaryDirectory() as folder:
        try:
            compact.save_pretrained(folder)
            found["reloaded"] = outputs(architecture.from_pretrained(folder).eval(), job["batch"])
        except Exception as error:
            found["reload_error"] = describe(error)
    return found


@torch.inference_mode()
def outputs(model, batch):
    """Return the logits."""
    return model(**batch).logits.clone()


def interleave(models, job):
    """Time models in turns, each the first of a round as often as the last."""
    end = time.perf_counter() + job["budget_s"]
    for model in list(models.values()) * job["warm_up"]:
        outputs(model, job["batch"])
    times = {name: [] for name in models}
    for number in range(job["rounds"]):
        if number >= 3 and time.perf_counter() > end:
            break
        for name in list(models)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            outputs(models[name], job["batch"])
            times[name].append(time.perf_counter() - start)
    return times


def count_heads(model):
    """Count the heads that the query projections have rows for."""
    attentions = [module for module in model.modules() if hasattr(module, "query")]
    return sum(module.query.out_features // module.attention_head_size for module in attentions)


def describe(error):
    """Return an error in one line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


if __name__ == "__main__":
    main()
