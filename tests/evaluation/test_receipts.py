"""Receipts: complete, deterministic, free of any machine's paths; and the files they live in survive a kill."""

import json
import subprocess

import pytest

from flowjax.evaluation import receipts
from flowjax.evaluation.run_files import LineFile, plain, read_lines


def make(**changes):
    given = dict(
        metric="sliced_w2", value=0.031, config=dict(seed=1, path=dict(name="linear")), config_path="config.json",
        seed=1, images_seen=1000, seconds=2.5, sampler="heun", nfe=39, guidance_scale=None, ema="ema", evaluator="w2",
        samples=64, command="python -m flowjax.main --config=configs/digits.py",
    )  # fmt: skip
    given.update(changes)
    return receipts.make_receipt(**given)


def test_receipt_has_every_field_and_round_trips(tmp_path):
    receipt = make(note="extra")
    assert set(receipts.REQUIRED) <= set(receipt)
    path = receipts.write_receipt(tmp_path, receipt)
    assert receipts.read_receipts(tmp_path) == [receipt]
    assert receipts.read_receipts("*.json", root=tmp_path) == [receipt]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_measuring_again_replaces_and_measuring_otherwise_does_not(tmp_path):
    receipts.write_receipt(tmp_path, make())
    receipts.write_receipt(tmp_path, make(value=0.029, seconds=9.0))
    assert [receipt["value"] for receipt in receipts.read_receipts(tmp_path)] == [0.029]
    receipts.write_receipt(tmp_path, make(nfe=10))
    receipts.write_receipt(tmp_path, make(config=dict(seed=2)))
    assert len(receipts.read_receipts(tmp_path)) == 3


def test_config_hash_ignores_order_and_sees_values():
    one = receipts.config_hash(dict(a=1, b=dict(c=2, d=(3, 4))))
    assert one == receipts.config_hash(dict(b=dict(d=[3, 4], c=2), a=1))
    assert one != receipts.config_hash(dict(a=1, b=dict(c=2, d=(3, 5))))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("/home/someone/run/config.json", "config.json"),
        ("--workdir=/tmp/run --x=1", "--workdir=run --x=1"),
        ("python '/opt/a/b.py'", "python 'b.py'"),
        ("~/run/x", "x"),
        (r"C:\Users\me\run", "run"),
        ("configs/digits.py a/b 1/2", "configs/digits.py a/b 1/2"),
        ("gs://bucket/run", "gs://bucket/run"),
        ("12 images / s", "12 images / s"),
    ],
)
def test_absolute_paths_become_relative(text, expected):
    assert receipts.relative(text) == expected


def test_paths_below_the_current_directory_keep_their_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert receipts.relative(f"--config={tmp_path}/configs/x.py") == "--config=configs/x.py"
    command = receipts.command(["/site/flowjax/main.py", f"--workdir={tmp_path}/runs/a b"])
    assert command.startswith("python -m flowjax.main ")
    assert str(tmp_path) not in command


def test_writing_refuses_a_machine_path_in_any_field(tmp_path):
    receipt = make() | {"note": {"from": ["/home/someone/x"]}}
    with pytest.raises(ValueError, match=r"/home/someone/x.*note\.from"):
        receipts.write_receipt(tmp_path, receipt)
    assert make(note=dict(source="/home/someone/x"))["note"] == {"source": "x"}


def test_missing_fields_and_bad_json_name_the_file(tmp_path):
    receipt = make()
    del receipt["nfe"], receipt["seed"]
    (tmp_path / "short.json").write_text(json.dumps(receipt))
    with pytest.raises(ValueError, match=r"short\.json lacks seed, nfe"):
        receipts.read_receipts(tmp_path)
    (tmp_path / "short.json").write_text("{oops")
    with pytest.raises(ValueError, match=r"short\.json is no valid JSON"):
        receipts.read_receipts(tmp_path)
    with pytest.raises(FileNotFoundError, match="No receipts match 'nothing/"):
        receipts.read_receipts("nothing/*.json", root=tmp_path)


def test_commit_is_the_hash_marks_changes_and_is_unknown_outside_a_repository(tmp_path):
    assert receipts.commit(tmp_path) == "unknown"
    git = lambda *words: subprocess.run(
        ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t", *words],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    git("init", "-q")
    left = ("experiments/one/receipts/r.json", "experiments/one/README.md", "README.md", "experiments/one/a.png")
    for name in ("a.py", "b.json", *left):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "a")
    head = git("rev-parse", "HEAD")
    assert receipts.commit(tmp_path) == head
    for name in left:
        (tmp_path / name).write_text("2")
    assert receipts.commit(tmp_path / "experiments") == head
    for name in ("a.py", "b.json"):
        (tmp_path / name).write_text("2")
        assert receipts.commit(tmp_path) == head + "+dirty"
        git("checkout", name)


def test_hardware_counts_devices_and_cores():
    import jax

    assert receipts.hardware().startswith(f"{jax.device_count()} x CPU device, ")


def test_strict_json_and_torn_lines(tmp_path):
    assert plain({"a": float("nan"), "b": [float("inf")]}) == {"a": "NaN", "b": ["Infinity"]}
    path = tmp_path / "x.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3')
    assert [line["step"] for line in read_lines(path)] == [1, 2]
    file = LineFile(path)
    file.append({"step": 3})
    file.close()
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3]
    path.write_text('{"step": 1}\nbroken\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_lines(path)
