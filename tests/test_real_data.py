"""Preparing prompts from real question sets; the files are found through LORAGEN_TEST_DATA."""

import json
import os
from pathlib import Path

import pytest
from loragen_infer.samples import read_examples
from loragen_train.configs.prepare import PrepareConfig
from loragen_train.prompts.combine import prepare

DATA = os.environ.get("LORAGEN_TEST_DATA")
pytestmark = pytest.mark.skipif(
    DATA is None, reason="LORAGEN_TEST_DATA is not set to a folder with *_train_formatted.jsonl question sets"
)


def test_no_question_of_a_real_set_is_in_two_prompts(tmp_path: Path) -> None:
    sources = sorted(Path(DATA or "").glob("*_train_formatted.jsonl"))
    assert len(sources) == 4
    manifest = prepare(sources, PrepareConfig(output_dir=str(tmp_path), seed=1))
    for source in sources:
        questions = [example.prompt for example in read_examples(source)]
        rows = [
            json.loads(line)
            for part in ("train", "val")
            for line in (tmp_path / f"{part}_prompts.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        ids = [index for row in rows if row["task"] == source.stem for index in row["sample_ids"]]
        used = [questions[index] for index in ids]
        # These sets repeat some questions, so different ids are not enough.
        assert len(used) == len(set(used)) == len(set(questions)) // 4 * 4
        counts = manifest["tasks"][source.stem]
        assert counts["num_val_prompts"] == round(0.1 * (counts["num_train_prompts"] + counts["num_val_prompts"]))
