"""Configs: what is wrong is refused with the key, the expectation and a suggestion."""

import pathlib

import pytest

from flowjax.choices import build, choose
from flowjax.config import (
    ConfigError,
    Schedule,
    apply_overrides,
    defaults,
    difference,
    load,
    parse_argument,
    schedule,
    validate,
)


@pytest.mark.parametrize(
    "override, message",
    [
        ("batch_sise=3", "Unknown config key 'batch_sise'.*Did you mean 'batch_size'"),
        ("when.log.every_step=3", "Unknown config key 'when.log.every_step'.*Did you mean 'every_steps'"),
        ("nothing.at.all=1", "Unknown config key 'nothing'"),
        ("steps=many", "'steps' is 'many' .str.; expected int"),
        ("steps=2.5", "'steps' is 2.5 .float.; expected int"),
        ("nan_guard=1", "'nan_guard' is 1 .int.; expected bool"),
        ("path=vp", "'path' is a group of entries.*path.name"),
        ("seed.x=1", "'seed' is a value, not a group"),
        ("steps", "has no value"),
    ],
)
def test_bad_overrides(override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(defaults(), [override])


def test_good_overrides_keep_types_and_open_specs():
    config = defaults()
    apply_overrides(
        config,
        ["steps=7", "path.name=vp", "path.beta_max=10.5", "optimizer.learning_rate=1", "when.sample.at_percent=(1, 2)"],
    )
    assert (config.steps, config.path.name, config.path.beta_max) == (7, "vp", 10.5)
    assert config.when.sample.at_percent == (1, 2)
    validate(config)
    lines = difference(config)
    assert "steps = 7 (default: 5000)" in lines and "path.beta_max = 10.5" in lines
    assert difference(defaults()) == []


def test_specs_on_the_command_line_are_written_as_in_files():
    config = defaults()
    spec = "dict(name='karras', deeper=dict(a=(1, 2.5), b=None))"
    apply_overrides(config, [f"samplers.default.grid={spec}", "method.note=dict(1)", "name=print('x')"])
    assert config.samplers.default.grid.to_dict() == dict(name="karras", deeper=dict(a=(1, 2.5), b=None))
    assert config.method.note == "dict(1)" and config.name == "print('x')"  # nothing else is called: it stays a text
    with pytest.raises(ValueError, match="The method is 'reflow'; expected a spec, dict"):
        build("method", "reflow", {"flow_matching": print})


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(batch_size=10, gradient_accumulation=4), "batch_size=10 does not divide into gradient_accumulation=4"),
        (dict(precision="float16"), "'precision' is 'float16'; expected one of float32, bfloat16"),
        (dict(parallel="pmap", sharding="zero3"), "parallel='pmap' keeps a full copy"),
        (dict(sharding="zero4"), "expected one of replicated, zero1, zero2, zero3.*Did you mean"),
        (dict(steps=0), "'steps' is 0; it must be at least 1"),
        (dict(ema=dict(slow=dict(name="constant", decay=0.5))), "samplers.default.role is 'ema'. Roles: slow, student"),
        (dict(evaluators=dict(fd=3)), "'evaluators.fd' must be a spec"),
    ],
)
def test_impossible_combinations(change, message):
    config = defaults()
    for key, value in change.items():
        config[key] = value
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_unknown_key_in_a_config_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from flowjax.config import defaults\ndef get_config(a=''):\n c = defaults()\n c.batchsize = 3\n return c\n"
    )
    with pytest.raises(ConfigError, match="Unknown config key 'batchsize'.*Did you mean 'batch_size'"):
        load(str(file))
    with pytest.raises(ConfigError, match="No config file at .*Did you mean .*mine.py"):
        load(str(tmp_path / "mime.py"))


def test_arguments_have_names_types_and_flags():
    assert parse_argument("tiny,preset=edm,size=3", tiny=False, preset="flow", size=1).to_dict() == dict(
        tiny=True, preset="edm", size=3
    )
    with pytest.raises(ConfigError, match="Unknown config argument 'tyni'.*Did you mean 'tiny'"):
        parse_argument("tyni", tiny=False)
    with pytest.raises(ConfigError, match="'size' is 'big'"):
        parse_argument("size=big", size=1)


def test_schedules_are_the_union_of_their_parts():
    due = Schedule(schedule(every_steps=4, at_percent=(10, 100)), total_steps=22)
    assert [step for step in range(23) if due.due(step)] == [2, 4, 8, 12, 16, 20, 22]
    epochs = Schedule(schedule(every_epochs=1), 20, steps_per_epoch=3.5)
    assert [step for step in range(15) if epochs.due(step)] == [4, 7, 11, 14]
    with pytest.raises(ConfigError, match="no end"):
        Schedule(schedule(every_epochs=1), 20)


def test_build_checks_options_against_the_factory():
    def square(side: float, colour: str = "red", *, scale: int = 1):
        return side, colour, scale

    table = {"square": square}
    assert build("shape", dict(name="square", scale=3), table, side=2.0, unused=5) == (2.0, "red", 3)
    with pytest.raises(
        ValueError, match="The shape 'square' has no option 'color'. Its options: colour, scale. Did you mean 'colour'"
    ):
        build("shape", dict(name="square", color="red"), table, side=2.0)
    with pytest.raises(TypeError, match="option 'scale' is 'x' .str.; expected int"):
        build("shape", dict(name="square", scale="x"), table, side=2.0)
    with pytest.raises(ValueError, match="has no option 'side'"):  # given by the caller, not by the spec
        build("shape", dict(name="square", side=1.0), table, side=2.0)
    with pytest.raises(ValueError, match="Unknown shape 'sqare'. Known: square. Did you mean 'square'"):
        choose("shape", "sqare", table)


CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))


# These need a finished run: tests/training/test_students_of_runs.py and test_policy_runs.py.
OF_RUNS = ("students.py", "preference.py")


@pytest.mark.parametrize("file", [str(path) for path in CONFIGS if path.name not in OF_RUNS])
@pytest.mark.parametrize("argument", ["", "tiny"])
def test_every_config_file_loads_in_both_forms(file, argument):
    config = load(f"{file}:{argument}")
    assert config.is_locked
    if argument == "tiny":
        assert config.steps < load(file).steps
