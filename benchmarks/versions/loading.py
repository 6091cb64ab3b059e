"""Load compact folders with the transformers of this environment, where head-gating is not installed.

    python loading.py JOBS ANSWERS

``JOBS`` is a JSON file: for each model its folder, its Auto class, a batch in JSON, and what else to try. ``ANSWERS``
gets what each route gave, or the last line of its error.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
import transformers


def _tensors(batch):
    return {name: torch.tensor(values) for name, values in batch.items()}


def _load(job, folder):
    return getattr(transformers, job["auto_class"]).from_pretrained(folder, trust_remote_code=True).eval()


def _outputs(job, folder):
    """Return the first numbers of the first output of the model in a folder, or of a name in the hub's cache."""
    with torch.no_grad():
        outputs = _load(job, folder)(**_tensors(job["batch"]))
    return next(value for value in outputs.values() if isinstance(value, torch.Tensor)).flatten()[:512].tolist()


def _saved_again(job):
    """Return outputs of the model after it was saved and loaded again here."""
    with tempfile.TemporaryDirectory() as scratch:
        _load(job, job["folder"]).save_pretrained(Path(scratch) / "again")
        return _outputs(job, str(Path(scratch) / "again"))


def _tokens(job):
    """Return the tokens that the model generates."""
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    return _load(job, job["folder"]).generate(**_tensors(job["prompt"]), **options).tolist()


def _pipeline(job):
    """Return the answer of a pipeline."""
    pipe = transformers.pipeline(job["task"], model=job["folder"], trust_remote_code=True)
    options = {"max_new_tokens": 4, "do_sample": False} if job["task"] == "text-generation" else {}
    answer = pipe("the cat sat on the mat", **options)[0]
    return [round(answer["score"], 4), answer["label"]] if "score" in answer else [answer["generated_text"]]


def _sentences(job):
    """Return the embedding of a sentence by sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(job["sentences"], trust_remote_code=True, device="cpu")
    return model.encode(["the cat sat on the mat"])[0].tolist()


ROUTES = {
    "disk": lambda job: _outputs(job, job["folder"]),
    "hub": lambda job: _outputs(job, job["hub"]),
    "again": _saved_again,
    # The difference of the outputs from those in the folder.
    "canary": lambda job: _load(job, job["folder"]).check_canary(),
    "tokens": _tokens,
    "pipeline": _pipeline,
    "sentences": _sentences,
}


def main(jobs, answers):
    """Try each route of each job, and write the answers."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    found = {"transformers": transformers.__version__, "torch": torch.__version__, "models": {}}
    for name, job in json.loads(Path(jobs).read_text()).items():
        found["models"][name] = {}
        for route in job["routes"]:
            try:
                answer = {"answer": ROUTES[route](job)}
            except Exception as error:
                lines = str(error).strip().splitlines() or [""]
                answer = {"error": f"{type(error).__name__}: {lines[0]}"}
            found["models"][name][route] = answer
    Path(answers).write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(*sys.argv[1:])
