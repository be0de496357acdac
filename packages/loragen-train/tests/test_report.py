"""A report on experiments: what is on the page, that it needs nothing else, and that no name or file breaks it."""

import base64
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from loragen_train import LoragenTrainError
from loragen_train.experiments.reader import read_experiments
from loragen_train.experiments.report import write_report
from PIL import Image

HOSTILE = "<script>alert('$x_{')</script>&\"'"


class Page(HTMLParser):
    """The tags, the attributes that can load something, and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.images: list[bytes] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            if key == "src" and value.startswith("data:image/png;base64,"):
                self.images.append(base64.b64decode(value.partition(",")[2]))
            elif key in {"src", "href", "srcset", "action", "data"} or key.startswith("on"):
                self.links.append(f"{tag} {key}={value}")

    def handle_data(self, data):
        self.text += data


def make_experiment(folder: Path, *, seed: int = 0, tasks: tuple[str, ...] = ("sums", "gcd"), **config) -> Path:
    """What a training leaves behind."""
    random = np.random.default_rng(seed)
    (folder / "csv_logs").mkdir(parents=True)
    (folder / "results").mkdir()
    content = {"model": {"hidden_dim": 16}, "training": {"learning_rate": 1e-4, "max_epochs": 5, **config}}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    lines = ["epoch,learning_rate,samples_per_second,step,train_loss,val_loss,val_weight_cosine"]
    for step in range(10):
        loss = math.exp(-step / 2) + 0.001 * random.random()
        lines.append(f"{step // 2},0.0001,{90 + step},{step * 4},{loss},,")
        lines.append(f"{step // 2},,,{step * 4},,{loss * 1.2},{1 - loss / 2}")
    (folder / "csv_logs" / "metrics.csv").write_text("\n".join(lines) + "\n")
    modules = [
        {
            "module": f"model.layers.{layer}.self_attn.{kind}",
            "mae": 0.01,
            "rmse": 0.02,
            "relative_error": error,
            "cosine": 0.9,
        }
        for layer in range(4)
        for kind, error in (("q_proj", 0.1 + layer / 10), ("v_proj", 0.2))
    ]
    targets = random.normal(size=200)
    sample = {
        "module": [0] * 200,
        "task": [tasks[index % len(tasks)] for index in range(200)],
        "target": targets.tolist(),
        "predicted": (targets + 0.1 * random.normal(size=200)).tolist(),
    }
    (folder / "results" / "validation.json").write_text(json.dumps({"modules": modules, "sample": sample}))
    return folder


def test_the_page_shows_everything_and_needs_nothing_else(tmp_path):
    folders = [make_experiment(tmp_path / "one"), make_experiment(tmp_path / "two", seed=1, learning_rate=3e-4)]
    written = write_report(folders, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.links == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    # loss, weight cosine, learning rate, samples per second; modules and values of either.
    assert len(page.images) == len(written["plots"]) == 8
    for image, path in zip(sorted(page.images), sorted(Path(p).read_bytes() for p in written["plots"]), strict=True):
        assert image == path
        with Image.open(io.BytesIO(image)) as picture:
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    assert "Not everything is there" not in page.text
    assert re.search(r"training\.learning_rate\s*0\.0001\s*0\.0003", page.text)
    assert "training.max_epochs" not in page.text.partition("Where they differ:")[2].partition("learning_rate: ")[0]
    assert "model.layers.3.self_attn.q_proj" in page.text


def test_the_numbers_are_those_of_the_file(tmp_path):
    written = write_report([make_experiment(tmp_path / "one")], tmp_path / "report.html")
    (experiment,) = written["experiments"]
    assert experiment["metrics"]["samples_per_second"] == {"last": 99.0, "min": 90.0, "max": 99.0}
    (read,) = read_experiments([tmp_path / "one"])
    assert read.metrics["val_loss"].steps == [4.0 * step for step in range(10)]
    assert read.metrics["train_loss"].values[0] == pytest.approx(read.metrics["val_loss"].values[0] / 1.2)
    assert read.config == {"model.hidden_dim": "16", "training.learning_rate": "0.0001", "training.max_epochs": "5"}
    assert "epoch" not in read.metrics


def test_what_is_seen_of_unseen_tasks_comes_first_and_is_in_the_table(tmp_path):
    folder = make_experiment(tmp_path / "one")
    # The start comes before all else, and has nothing but these.
    lines = [
        "epoch,step,val_unseen_nll,val_steering_margin,train_loss,val_loss",
        "0,0,2.5,-0.0625,,",
        "0,9,,,1.5,",
        "0,9,2.25,0.125,,1.75",
        "1,19,,,1.25,",
        "1,19,2.375,0.25,,1.5",
    ]
    (folder / "csv_logs" / "metrics.csv").write_text("\n".join(lines) + "\n")
    written = write_report([folder], tmp_path / "report.html")
    (experiment,) = written["experiments"]
    assert experiment["metrics"]["val_unseen_nll"] == {"last": 2.375, "min": 2.25, "max": 2.5}
    assert experiment["metrics"]["val_steering_margin"] == {"last": 0.25, "min": -0.0625, "max": 0.25}
    assert [Path(path).name for path in written["plots"][:3]] == [
        "01_unseen_nll.png",
        "02_steering_margin.png",
        "03_loss.png",
    ]
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert re.search(r"val_unseen_nll\s*2\.375 \(2\.25 to 2\.5\)", page.text)
    assert re.search(r"val_steering_margin\s*0\.25 \(-0\.0625 to 0\.25\)", page.text)
    assert "Not everything is there" not in page.text


def test_no_label_of_an_axis_is_a_formula(tmp_path, monkeypatch):
    """Formulas are off, for the sake of names; an axis that is labelled by one would show its source."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    seen = []
    save = Figure.savefig

    def look(figure, *args, **kwargs):
        save(figure, *args, **kwargs)
        for axes in figure.findobj(Axes):
            seen.append(axes.get_yscale())
            seen.extend(label.get_text() for label in (*axes.get_xticklabels(), *axes.get_yticklabels()))

    monkeypatch.setattr(Figure, "savefig", look)
    write_report([make_experiment(tmp_path / "one")], tmp_path / "report.html")
    assert "log" in seen
    assert not [text for text in seen if "$" in text]


def test_hostile_names_are_text(tmp_path):
    # A folder cannot have the slash of a closing tag in its name.
    folder = make_experiment(tmp_path / HOSTILE.replace("/", ""), tasks=(HOSTILE, "_hidden"), note=HOSTILE)
    metrics = folder / "csv_logs" / "metrics.csv"
    metrics.write_text(metrics.read_text().replace("samples_per_second", "\"../<img src=x onerror='alert(1)'>$_{\""))
    validation = folder / "results" / "validation.json"
    validation.write_text(validation.read_text().replace("model.layers.3", "<b>$\\\\frac{</b>.layers.3"))
    written = write_report([folder], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.links == []
    assert not {"script", "b"} & set(page.tags)
    assert page.tags.count("img") == len(page.images)
    assert HOSTILE in page.text
    assert "<b>$\\frac{</b>.layers.3" in page.text
    for path in written["plots"]:
        assert Path(path).parent == tmp_path / "report_plots"


@pytest.mark.parametrize("piece", ["config.yaml", "csv_logs/metrics.csv", "results/validation.json"])
def test_a_missing_piece_is_named_and_stops_nothing(tmp_path, piece):
    folder = make_experiment(tmp_path / "one")
    (folder / piece).unlink()
    written = write_report([folder, make_experiment(tmp_path / "two")], tmp_path / "report.html")
    first, second = written["experiments"]
    assert first["missing"] == [f"{piece} is not there (yet): the training is going on or was interrupted."]
    assert second["missing"] == []
    assert piece in Page((tmp_path / "report.html").read_text()).text


@pytest.mark.parametrize(
    ("piece", "content"),
    [
        ("config.yaml", "a: [1"),
        ("config.yaml", "just text"),
        ("config.yaml", "&a [*a]"),
        ("csv_logs/metrics.csv", b"\xff\xfe\x00"),
        ("csv_logs/metrics.csv", ""),
        ("csv_logs/metrics.csv", "epoch,step,train_loss\n1,2,nan\n"),
        ("csv_logs/metrics.csv", "epoch,step,train_loss\n1,2," + "1" * 200_000),
        ("results/validation.json", "{"),
        ("results/validation.json", "[]"),
        ("results/validation.json", '{"modules": [{"module": "x"}], "sample": {}}'),
        ("results/validation.json", '{"modules": [], "sample": {"task": ["a"]}}'),
        ("failed.txt", b"\xff\xfe"),
    ],
)
def test_a_damaged_piece_is_named(tmp_path, piece, content):
    folder = make_experiment(tmp_path / "one")
    (folder / piece).write_bytes(content if isinstance(content, bytes) else content.encode())
    (experiment,) = read_experiments([folder])
    assert experiment.missing
    assert all("\n" not in sentence for sentence in experiment.missing)
    whole = {"config": experiment.config, "csv_logs": experiment.metrics, "results": experiment.modules}
    assert all(bool(value) != piece.startswith(part) for part, value in whole.items())


def test_a_report_on_nothing_but_damage_is_written(tmp_path):
    folder = make_experiment(tmp_path / "one")
    for piece in ("config.yaml", "csv_logs/metrics.csv", "results/validation.json"):
        (folder / piece).write_text("[")
    (experiment,) = write_report([folder], tmp_path / "report.html")["experiments"]
    assert len(experiment["missing"]) == 3
    page = Page((tmp_path / "report.html").read_text())
    assert all(sentence in page.text for sentence in experiment["missing"])
    assert page.images == []


def test_a_line_that_was_cut_short_and_values_that_are_not_finite(tmp_path):
    folder = make_experiment(tmp_path / "one")
    (folder / "csv_logs" / "metrics.csv").write_text(
        "epoch,step,train_loss,val_loss\n0,1,2.5,\n0,2,inf,\n1,3,1.5,0.5\n1,4,1.2"
    )
    (experiment,) = read_experiments([folder])
    assert experiment.metrics.keys() == {"train_loss", "val_loss"}
    assert experiment.metrics["train_loss"].values == [2.5, 1.5, 1.2]
    assert experiment.metrics["train_loss"].steps == [1, 3, 4]
    assert experiment.missing == ["1 of the values of train_loss are NaN or Inf and not shown."]
    write_report([folder], tmp_path / "report.html")


def test_a_line_that_was_cut_before_its_step_is_left_out(tmp_path):
    folder = make_experiment(tmp_path / "one")
    (folder / "csv_logs" / "metrics.csv").write_text(
        "epoch,learning_rate,step,train_loss\n0,0.1,5,2.0\n1,0.\n1,0.1,,\n2,0.1,15,1.0\n"
    )
    (experiment,) = read_experiments([folder])
    assert experiment.metrics["train_loss"].steps == [5, 15]
    assert experiment.missing == []


def test_numbers_that_were_not_finite_are_left_out(tmp_path):
    folder = make_experiment(tmp_path / "one")
    file = folder / "results" / "validation.json"
    content = json.loads(file.read_text())
    content["modules"][0]["cosine"] = None
    content["modules"][1]["relative_error"] = None
    content["sample"]["target"][0] = None
    file.write_text(json.dumps(content))
    (experiment,) = write_report([folder], tmp_path / "report.html")["experiments"]
    assert experiment["missing"] == []


def test_what_is_no_experiment_is_an_error(tmp_path, make, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoragenTrainError, match=r"empty holds neither config\.yaml nor csv_logs/metrics\.csv nor"):
        write_report([tmp_path / "empty"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    assert make.cli("report", str(tmp_path / "nowhere"), "--output", str(tmp_path / "report.html")) == 1
    assert "nowhere holds neither config.yaml nor " in capsys.readouterr().err
    folder = str(make_experiment(tmp_path / "one"))
    assert make.cli("report", folder, "--output", str(tmp_path)) == 1
    assert "is a folder; give the name of an .html file" in capsys.readouterr().err
    assert make.cli("report") == 2


def test_the_command_says_where_the_page_is_and_what_is_missing(tmp_path, make, capsys):
    folder = make_experiment(tmp_path / "one")
    (folder / "results" / "validation.json").unlink()
    words = [
        "report",
        str(folder),
        str(folder),
        "--output",
        str(tmp_path / "page.html"),
        "--plots",
        str(tmp_path / "p"),
    ]
    assert make.cli(*words) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/page.html\n"
    assert "one: results/validation.json is not there (yet)" in err
    assert "one (2): results/validation.json" in err
    assert make.cli(*words, "--json") == 0
    written = json.loads(capsys.readouterr().out)
    assert [experiment["name"] for experiment in written["experiments"]] == ["one", "one (2)"]
    assert all(Path(path).parent == tmp_path / "p" for path in written["plots"])


def test_words_after_two_dashes_count_once(tmp_path, make, capsys):
    folder = make_experiment(tmp_path / "one")
    assert make.cli("report", "--output", str(tmp_path / "page.html"), "--json", "--", str(folder)) == 0
    assert [experiment["name"] for experiment in json.loads(capsys.readouterr().out)["experiments"]] == ["one"]


def test_a_browser_shows_the_page(tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium or chrome on this machine to open the page with")
    folder = make_experiment(tmp_path / "one", tasks=(HOSTILE, "gcd"), note=HOSTILE)
    write_report([folder], tmp_path / "report.html")
    # Replaces the title with what the browser has made of the page, which its own policy would forbid within the page.
    probe = tmp_path / "probe.html"
    probe.write_text(
        f"<iframe id=page src='{(tmp_path / 'report.html').as_uri()}'></iframe><script>"
        "page.onload = () => { const d = page.contentDocument; document.title = JSON.stringify({"
        "images: [...d.images].map(i => [i.complete, i.naturalWidth]), scripts: d.scripts.length, "
        "tables: d.querySelectorAll('table').length, text: d.body.innerText.length}); };</script>"
    )
    words = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--virtual-time-budget=5000",
    ]
    done = subprocess.run(
        [browser, *words, f"--user-data-dir={tmp_path}/profile", "--dump-dom", probe.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stdout
    seen = json.loads(title[1])
    assert len(seen["images"]) == 6
    assert all(complete and width > 400 for complete, width in seen["images"])
    assert seen["scripts"] == 0
    assert seen["tables"] == 2
    assert seen["text"] > 300
