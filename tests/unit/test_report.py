"""Test report.html for hand-written run folders: its content, and its rendering in a browser."""

import html.parser
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from planet_jax import commands
from planet_jax.config import flatten, get_config
from planet_jax.data.chip_files import ChipFinder
from planet_jax.data.labels import read_labels
from planet_jax.results import pictures
from planet_jax.results.evaluate import Evaluation, compute_metrics, write_evaluation
from planet_jax.results.predict import joined_tags
from planet_jax.results.report import gallery
from planet_jax.runtime.errors import BadInput
from planet_jax.runtime.files import write_json
from planet_jax.train.log import HISTORY_COLUMNS, STEP_COLUMNS
from tests.support import ROOT, write_chips

EVIL = "<script>document.title='owned'</script>"  # without spaces, because it is one label
LABELS = ["clear primary", f"clear {EVIL}", "haze $x&quot;", "$x&quot; primary", "a\"b'c", ""] * 10
EVIL_CHIP = '"><img src=http:x onerror=alert(1)>'


def write_run(folder, init_from="", **options):
    """Write config.json, steps.csv and history.csv as training does: 3 epochs of 8 steps."""
    config = get_config()
    config.update_from_flattened_dict({"workdir": str(folder), "init_from": init_from, **options})
    about = {
        "config": flatten(config), "versions": {"jax": "1.2.3"}, "git_commit": "0123abc",
        "devices": ["TPU v5 lite"] * 4, "hosts": 2,
    }  # fmt: skip
    write_json(folder / "config.json", about)
    rng = np.random.default_rng(len(init_from))
    steps = pd.DataFrame(rng.uniform(0.1, 0.9, (24, len(STEP_COLUMNS))), columns=STEP_COLUMNS)
    steps["step"] = np.arange(24)
    steps.to_csv(folder / "steps.csv", index=False)
    history = pd.DataFrame(rng.uniform(0.1, 0.9, (3, 6)), columns=HISTORY_COLUMNS)
    history.assign(epoch=range(3)).to_csv(folder / "history.csv", index=False)
    return config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Write two complete chained runs on chips with hostile names; return the second's config."""
    folder = tmp_path_factory.mktemp("report")
    root = write_chips(folder / "root", LABELS)
    (root / "train-jpg" / "chip7.jpg").rename(root / "train-jpg" / f"{EVIL_CHIP}.jpg")
    table = pd.read_csv(root / "train_v2.csv", keep_default_na=False)
    table.replace({"image_name": {"chip7": EVIL_CHIP}}).to_csv(root / "train_v2.csv", index=False)
    options = {"data.root": str(root), "optim.lr": (1e-3,), "train.epochs": 3}
    write_run(folder / "one", **options)
    config = write_run(folder / "two", str(folder / "one"), **options, **{"optim.freeze": False})
    for run in ("one", "two"):
        lrs = 10 ** np.linspace(-7, 0, 60)
        curve = pd.DataFrame({"step": range(60), "lr": lrs, "loss": (np.log10(lrs) + 3) ** 2 + 1})
        curve.to_csv(folder / run / "lr_range.csv", index=False)
        Image.new("RGBA", (1200, 1300), "white").save(folder / run / "show_batch.png")
    labels = read_labels(root)
    rng, rows = np.random.default_rng(0), np.arange(len(LABELS))
    logits = rng.normal(4.0 * labels.targets - 2, 3)
    config.score.resamples, config.score.test_time_augmentation = 20, "dihedral"
    evaluation = Evaluation(config, logits, labels.targets, labels.classes)
    result = compute_metrics(evaluation)
    write_evaluation(folder / "two", evaluation, result, labels, rows, fitted_to={})
    commands.report(config)
    return config


@pytest.fixture
def path(config):
    return f"{config.workdir}/report.html"


class Tags(html.parser.HTMLParser):
    """Collect every tag with its attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_page_is_complete_and_loads_nothing(config, path):
    with open(path, encoding="utf-8") as file:
        page = file.read()
    assert len(page.encode()) < 5e6
    tags = Tags(page)
    assert len(tags.of("script")) == 1
    for _, attributes in tags.tags:
        for name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\((?!#)", page)
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in tags.of("svg"))
    assert all(picture["alt"] for picture in tags.of("img"))
    assert len(tags.of("svg")) == 3 + 2 + 2 + 2 + 1 + 1 + 2
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    named = [i for i in ids if not re.fullmatch("(m|p|image)[0-9a-f]{10}", i)]
    assert len(named) == len(set(named)) == 14  # thirteen parts and the select element
    metrics = json.loads(Path(config.workdir, "metrics.json").read_text())
    for score in (metrics["fbeta"], metrics["decisions"][3]["fbeta"]):
        assert f"{score:.4f}" in tags.text
    assert {EVIL, "$x&quot;", "a\"b'c"} <= {option["value"] for option in tags.of("option")}
    assert EVIL_CHIP in tags.text
    assert "4 × TPU v5 lite" in tags.text


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections'
def test_commands_repeat_the_runs(config, path, monkeypatch):
    with open(path, encoding="utf-8") as file:
        lines = Tags(file.read()).text.splitlines()
    trained = [shlex.split(line) for line in lines if line.startswith("python -m planet_jax.main")]
    assert [line[3] for line in trained] == ["train", "train", "evaluate", "report"]
    for command, run in zip(trained, ("one", "two", "two", "two"), strict=True):
        values = flags.FlagValues()
        flag = config_flags.DEFINE_config_file("config", flag_values=values)
        command[command.index("base")] = str(ROOT / "configs" / "base.py")
        monkeypatch.setattr("sys.argv", command[3:])  # config_flags reads it
        values(command[3:])
        about = f"{config.workdir}/../{run}/config.json"
        with open(about) as file:
            options = json.load(file)["config"]
        if command[3] == "evaluate":  # its options differ from those of the training
            options |= {"score.resamples": 20, "score.test_time_augmentation": "dihedral"}
        assert json.loads(json.dumps(flatten(flag.value))) == options


def test_missing_parts_name_the_command_that_helps(config, tmp_path, capsys):
    run = tmp_path / "run"
    bare = config.copy_and_resolve_references()
    bare.workdir, bare.data.root = str(run), str(tmp_path / "gone")
    with pytest.raises(BadInput, match=r"has no config\.json; train this run first"):
        commands.report(bare)
    assert not run.exists()
    write_run(run, init_from=str(tmp_path / "before"))
    commands.report(bare)
    lines = capsys.readouterr().out
    for command in ("lr_range", "show_batch", "evaluate"):
        assert f": `{command}` " in lines
    page = (run / "report.html").read_text()
    assert "which does not exist" in page
    assert page.count('class="missing"') == len(lines.splitlines()) == 9
    for name in ("metrics.json", "chips.csv"):
        shutil.copy(f"{config.workdir}/{name}", run)
    commands.report(bare)
    assert "gone/train-jpg: set config.data.root" in capsys.readouterr().out
    (run / "metrics.json").write_text('{"fbeta": 0.5}')
    commands.report(bare)
    assert "is from another version: run `evaluate` again" in capsys.readouterr().out


def test_curves_of_a_resumed_run_without_its_old_rows(tmp_path):
    """Rows keep their positions: steps 5 to 23 and epochs 1 and 2, then a stage of 24 steps."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name)
    for name, first in (("steps.csv", 5), ("history.csv", 1)):
        path = tmp_path / "one" / name
        pd.read_csv(path)[first:].to_csv(path, index=False)
    steps, history = pictures.along([tmp_path / "one", tmp_path / "two"])
    assert steps["step"].tolist() == [*range(5, 24), *range(24, 48)]
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert history["end"].tolist() == [16, 24, 32, 40, 48]
    assert steps["stage_start"].tolist() == [0] * 19 + [24] * 24


def test_a_report_of_tables_without_rows(tmp_path):
    config = write_run(tmp_path)
    for name, columns in (("steps.csv", STEP_COLUMNS), ("history.csv", HISTORY_COLUMNS)):
        (tmp_path / name).write_text(",".join(columns) + "\n")
    commands.report(config)
    assert "no epoch yet" in (tmp_path / "report.html").read_text()


def test_a_label_of_several_words_is_one_label(tmp_path):
    classes = ["bare ground", "ground"]
    tags = joined_tags(np.array([[True, True], [False, True]]), classes)
    assert tags == ["bare ground|ground", "ground"]
    table = pd.DataFrame({"image_name": "a", "loss": 1.0, "fbeta": 0.5, "tags": tags})
    table["predicted"] = ["", "bare ground"]
    p = np.full(2, 0.5)
    first, second = (gallery.card(r, p, classes, ChipFinder(tmp_path)) for _, r in table.iterrows())
    assert 'data-labels="bare ground\nground"' in first
    assert "missed bare ground 0.50" in first
    assert "wrong bare ground 0.50</li>" in second
    assert "missed ground 0.50</li>" in second


@pytest.fixture
def browser():
    """Start headless chromium, which makes no requests of its own."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no chromium and chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
        yield browser


def test_browser_renders_the_page(browser, path):
    browser.get(f"file://{path}")
    run = browser.execute_script
    shown = run("""return [...document.querySelectorAll("figure svg, figure img")]
                          .filter(e => e.getBoundingClientRect().height > 50).length""")
    assert shown == 14
    assert run("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert run("return document.title").startswith("planet_jax")

    count = """return [...document.querySelectorAll(".chips > li")]
                      .filter(e => e.offsetHeight > 0).map(e => e.dataset.labels.split("\\n"))"""
    assert len(run(count)) == 2 * 12
    options = run('return [...document.getElementById("class").options].map(o => o.value)')
    assert options[0] == ""
    assert len(options) == 1 + 6
    for label in options[1:]:
        run(
            """const c = document.getElementById("class"); c.value = arguments[0];
               c.dispatchEvent(new Event("change"))""",
            label,
        )
        chips = run(count)
        assert len(chips) >= 2 * 4
        assert all(label in labels for labels in chips)

    run("document.documentElement.scrollTo(0, 0)")
    metrics = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    colors = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        assert run("return document.documentElement.scrollWidth") == 400
        assert run("""return [...document.images].filter(i => i.offsetHeight).every(
            i => Math.abs(i.width / i.height - i.naturalWidth / i.naturalHeight) < 0.02)""")
        colors.append(
            run("""return [document.body, document.querySelector("figure svg text")]
            .map((e, i) => getComputedStyle(e)[i ? "fill" : "backgroundColor"])
            .map(c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3)""")
        )
    (page, text), (dark_page, light_text) = colors
    assert page > 200 > 100 > text
    assert dark_page < 50 < 200 < light_text

    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert {url.split(":")[0] for url in sent} <= {"file", "data"}
    assert [url for url in sent if url.startswith("file")] == [f"file://{path}"]
