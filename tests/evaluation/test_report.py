"""The report page: whole, self-contained, safe, true to the figures, and fit for a phone."""

import html.parser
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from flowjax.evaluation import charts, report, run_record, sections

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from fake_run import fake_run

VOID = {"meta", "link", "img", "input", "br", "line", "path", "circle"}


class Page(html.parser.HTMLParser):
    """Collects tags, and fails on a tag that is closed out of order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> is out of order"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    return fake_run(tmp_path_factory.mktemp("runs") / "digits_unet")


@pytest.fixture(scope="module")
def text(run_directory):
    return report.write_report(run_directory).read_text()


def test_page_is_whole_and_has_every_section(text):
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for anchor, title, _, _ in report.SECTIONS:
        assert anchor in ids and title in page.text
    for words in ("Finished", "digits_unet", "5,000 of 5,000", "Real against real: 0.0214 (1.49×)", "logit_normal"):
        assert words in page.text
    assert "$" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)


def test_nothing_is_loaded_from_anywhere(text):
    page = Page(text)
    assert not re.search(r"https?://|@import|url\(", text)
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base")
        assert not (tag == "script" and "src" in attributes)
        for name in ("src", "href", "srcset"):
            assert attributes.get(name, "#").startswith(("data:", "#"))
    policies = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies and policies[0].startswith("default-src 'none'")


def test_pictures_and_charts_are_described(text):
    tags = Page(text).tags
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == 2 * (6 + 1) and all("Samples of" in image["alt"] for image in images)
    drawings = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(drawings) >= 8 and all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)


def test_a_curve_says_how_it_looks_when_all_is_well(text):
    (caption,) = re.findall(r"<figcaption><b>Loss</b>(.*?)</figcaption>", text)
    assert "Falls &amp; stays above zero." in caption and text.count("Falls &amp; stays") == 1


def test_hostile_strings_stay_text(tmp_path):
    evil = "\"><script>alert('x')</script><img src=x onerror=y>"
    run = fake_run(tmp_path / "evil<b>&run")
    (run / "config.json").write_text(json.dumps(dict(seed=evil, data=dict(name=evil), steps=5000)))
    (run / "config_difference.txt").write_text(f"data.name: a -> {evil}\n")
    (run / "check.json").write_text(json.dumps([dict(name=evil, passed=False, detail=evil, fix=evil)]))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5000, "seconds": 1, evil: 1.0, f"eval/{evil}/x": 2.0}) + "\n")
    for path in (run / "receipts").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(sampler=evil, command=evil, evaluator=evil)))
    (run / "samples/00000001_a<script>.png").write_bytes((run / "samples/00000500_default.png").read_bytes())
    page = Page(report.render(run))
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert evil in page.text


def test_missing_files_are_said_not_raised(tmp_path):
    page = Page(report.write_report(tmp_path).read_text())
    for words in (
        "metrics.jsonl is missing",
        "by_time.jsonl is missing",
        "config.json is missing",
        "No receipts in",
        "No pictures in",
    ):
        assert words in page.text
    with pytest.raises(FileNotFoundError, match="no run directory 'nowhere'"):
        report.render(tmp_path / "nowhere")


def test_unreadable_files_are_said_too(run_directory, tmp_path):
    run = tmp_path / "damaged"
    shutil.copytree(run_directory, run)
    (run / "config.json").write_text("{")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    text = Page(report.render(run)).text
    assert "config.json is no valid JSON" in text and str(tmp_path) not in text and "Steps" in text


@pytest.mark.parametrize(
    "losses, given, expected",
    [
        ([1.0, 0.5], None, ("busy", "Running, at step 2 of 10")),
        ([1.0, "NaN", "NaN"], None, ("bad", "Stopped by a non-finite loss at step 2")),
        ([1.0, "NaN", 0.5], None, ("busy", "Running, at step 3 of 10")),
        ([1.0] * 10, None, ("good", "Finished")),
        ([1.0], "stopped by the user", ("bad", "Stopped by the user")),
        ([1.0], "finished", ("good", "Finished")),
    ],
)
def test_status(tmp_path, losses, given, expected):
    (tmp_path / "config.json").write_text('{"steps": 10}')
    lines = [json.dumps(dict(step=i + 1, seconds=1.0, loss=loss)) for i, loss in enumerate(losses)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert run_record.status(run_record.read_run(tmp_path), given) == expected
    Page(report.render(tmp_path, given))


def test_smoothing_keeps_a_constant_and_skips_nan():
    assert charts.smooth([2.0, 2.0, 2.0], 10) == pytest.approx([2.0, 2.0, 2.0])
    made = charts.smooth([1.0, math.nan, 1.0], 5)
    assert made[0] == pytest.approx(1.0) and math.isnan(made[1]) and made[2] == pytest.approx(1.0)
    # Weights 1 and d = 1 - 1/2 on the values 1 (newer) and 0: 1 / (1 + d).
    assert charts.smooth([0.0, 1.0], 2)[1] == pytest.approx(1 / 1.5)


def test_thinning_keeps_spikes():
    y = [0.0] * 10000
    y[1234], y[7777] = 5.0, math.inf
    x, thinned = charts.thin(range(10000), y)
    assert len(x) < 600 and 5.0 in thinned and math.inf in thinned and x[0] == 0 and x[-1] == 9999


def test_density_integrates_to_one_and_its_steps_stand_over_their_bins(tmp_path):
    edges = [0.0, 0.1, 0.4, 1.0]
    density = sections.density(edges, [10, 30, 60])
    assert density == pytest.approx([1.0, 1.0, 1.0])
    # All examples in the middle bin: the line must rise at its left edge and fall at its right edge.
    line = dict(step=1, phase="", edges=[0.0, 0.25, 0.5, 1.0], loss=[1.0, 1.0, 1.0], count=[0, 8, 0])
    (tmp_path / "by_time.jsonl").write_text(json.dumps(line) + "\n")
    page = sections.along_time(run_record.read_run(tmp_path))
    path = re.search(r'class="step c1"[^>]* d="([^"]+)"', page)[1]
    points = [tuple(map(float, pair.split())) for pair in re.split("[ML]", path)[1:]]
    place = lambda t: charts.LEFT + t * (charts.WIDTH - charts.LEFT - charts.RIGHT)
    base, top = max(y for _, y in points), min(y for _, y in points)
    high = [x for x, y in points if y == top]
    assert min(high) == pytest.approx(place(0.25), abs=0.1) and max(high) == pytest.approx(place(0.5), abs=0.1)
    assert points[0] == (pytest.approx(place(0.0)), base) and points[-1] == (pytest.approx(place(1.0)), base)


@pytest.mark.parametrize(
    "value, shown",
    [
        (0.0, "0"),
        (0.0345, "0.0345"),
        (2e-4, "2e-4"),
        (1250.0, "1,250"),
        (41000.0, "41k"),
        (2.5e6, "2.5M"),
        (math.nan, "NaN"),
    ],
)
def test_number_text(value, shown):
    assert charts.number_text(value) == shown


@pytest.mark.parametrize("low, high", [(0.2, 0.9), (0, 1), (3, 5000), (-2e-5, 7e-5)])
def test_ticks_are_round_inside_and_neither_few_nor_many(low, high):
    marks = charts.ticks(low, high)
    assert 3 <= len(marks) <= 9 and low - 1e-9 <= marks[0] and marks[-1] <= high + 1e-9


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the page is not laid out")
@pytest.mark.parametrize("width", [390, 1280])
def test_no_horizontal_scroll_in_a_browser(run_directory, text, tmp_path, width):
    # A frame gives an exact width: browser windows have a least width above a phone's. The page's own policy stays on.
    probe = (
        "<script>addEventListener('load', () => { const wide = document.documentElement.scrollWidth;"
        " parent.postMessage([wide, innerWidth, document.querySelectorAll('.tip').length,"
        " document.querySelectorAll('input[type=range]').length].join(), '*'); });</script></body>"
    )
    (tmp_path / "page.html").write_text(text.replace("</body>", probe))
    (tmp_path / "frame.html").write_text(
        "<body><script>addEventListener('message', event => { document.body.dataset.seen = event.data; });</script>"
        f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe></body>'
    )
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --virtual-time-budget=5000 --dump-dom"
    )
    run = subprocess.run(
        [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    seen = re.search(r'data-seen="([\d,]+)"', run.stdout)
    assert seen, run.stdout[-500:] + run.stderr[-500:]
    page_width, window_width, tips, sliders = map(int, seen[1].split(","))
    assert window_width == width and page_width <= width
    assert tips >= 8 and sliders == 2  # the script ran to its end, under the page's policy


def test_a_card_says_on_what_within_which_interval_and_beside_which_floor(tmp_path):
    from fake_run import CONFIG

    from flowjax.evaluation.receipts import make_receipt, write_receipt

    directory = fake_run(tmp_path / "run")
    for layer, value, floor in (("b10", 41.5, 24.25), ("b15", 512.0, 300.0)):
        features = dict(name="efficientnet_lite0", layer=layer, input_size=96, weights="0123456789abcdef")
        receipt = make_receipt(
            "frechet", value, config=CONFIG, config_path="config.json", seed=0, images_seen=1000, seconds=1.0,
            sampler="heun", nfe=39, guidance_scale=None, ema="ema", evaluator="frechet", samples=600, floor=floor,
            floor_std=1.5, interval=[value - 2, value + 2], features=features, commit="0123456789abcdef",
            hardware="1 x Test Device", command="python -m flowjax.main",
        )  # fmt: skip
        write_receipt(directory / "receipts", receipt)
    page = Page(report.write_report(directory).read_text())
    for words in ("95%: 39.5 to 43.5", "Real against real: 24.2 ± 1.5", "on efficientnet lite0, layer b10"):
        assert words in page.text
    for words in ("95%: 510 to 514", "Real against real: 300 ± 1.5", "on efficientnet lite0, layer b15"):
        assert words in page.text
