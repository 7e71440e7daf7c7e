"""Methods that cannot work are refused at construction, with the name and the fix."""

import jax.numpy as jnp
import optax
import pytest

from flowjax.contract import Method, Phase, Role, Sampler, Track

LOSS = lambda params, batch, key: (jnp.zeros(1), {})
INIT = lambda key: {"w": jnp.zeros(2)}
TX = optax.sgd(0.1)
STUDENT = Role(init=INIT, tx=TX)
FIT = {"fit": Phase(LOSS, ("student",))}


@pytest.mark.parametrize(
    "roles, phases, message",
    [
        (dict(student=STUDENT), {}, "has no phases"),
        (dict(student=STUDENT), dict(fit=Phase(LOSS, ("studnt",))), "role 'studnt', which .* Did you mean 'student'"),
        (dict(student=Role(init=INIT)), FIT, "trains role 'student', which is frozen"),
        (dict(student=STUDENT, fake=STUDENT), FIT, "Role 'fake' has an optimizer but no phase trains it"),
        (dict(student=Role(tx=TX)), FIT, "exactly one of init, copy_of, restore_from and load; it has none"),
        (dict(student=Role(init=INIT, copy_of="ema", tx=TX), ema=Role(init=INIT)), FIT, "it has init, copy_of"),
        (dict(student=STUDENT, ema=Role(copy_of="teacher")), FIT, "Role 'ema' copies role 'teacher'"),
        (dict(student=STUDENT, a=Role(copy_of="b"), b=Role(copy_of="a")), FIT, "copies itself"),
        (
            dict(student=STUDENT, ema=Role(copy_of="student", track=Track("raw", lambda s: 0.1))),
            FIT,
            "tracks role 'raw'",
        ),
        (
            dict(student=Role(init=INIT, tx=TX, track=Track("student", lambda s: 0.1))),
            FIT,
            "both an optimizer and a track",
        ),
        (dict(student=STUDENT), dict(fit=Phase(LOSS, ())), "trains no role"),
        (dict(student=STUDENT), dict(fit=Phase(LOSS, ("student",), every=3, offset=3)), "would never be due"),
        (dict(student=STUDENT), dict(fit=Phase(LOSS, ("student",), start=-1)), "starts at step -1"),
    ],
)
def test_inconsistent_methods_are_refused(roles, phases, message):
    with pytest.raises(ValueError, match=message):
        Method(roles=roles, phases=phases)


def test_a_sampler_of_an_unknown_role_is_refused():
    with pytest.raises(ValueError, match="Sampler 'default' reads role 'emma'.*Did you mean 'ema'"):
        Method(
            roles=dict(student=STUDENT, ema=Role(copy_of="student")),
            phases=FIT,
            samplers=dict(default=Sampler(draw=lambda p, c, k: jnp.zeros(1), role="emma", description={})),
        )


def test_restored_roles_may_say_what_they_expect():
    Method(roles=dict(student=Role(init=INIT, restore_from="runs/a", tx=TX)), phases=FIT)
    with pytest.raises(ValueError, match="exactly one"):
        Method(roles=dict(student=Role(copy_of="student", restore_from="runs/a", tx=TX)), phases=FIT)


@pytest.mark.parametrize("every, offset, start", [(1, 0, 0), (1, 0, 7), (3, 2, 0), (3, 1, 5), (4, 0, 8)])
def test_updates_are_counted_as_they_are_due(every, offset, start):
    late = Phase(LOSS, ("student",), every=every, offset=offset, start=start)
    method = Method(dict(student=STUDENT), dict(FIT, late=late))
    due = [late.due(step) for step in range(40)]
    assert not any(due[:start]) and any(due[start : start + every])
    assert all(method.updates_of("student", n) == n + sum(due[:n]) for n in range(40))
    assert method.due_sets() == {method.due(step) for step in range(40)}
    assert method.cycle() == [method.due(start + step) for step in range(every)]
    assert late.first == due.index(True)


@pytest.mark.parametrize("every, offset, start, first", [(1, 0, 7, 7), (5, 4, 0, 4), (5, 1, 7, 11), (3, 0, 9, 9)])
def test_a_phase_whose_turn_lies_behind_the_end_of_the_run_is_refused(every, offset, start, first):
    late = Phase(LOSS, ("student",), every=every, offset=offset, start=start)
    method = Method(dict(student=STUDENT), dict(FIT, late=late))
    method.check_length(first + 1)
    message = (
        f"'late' would never run: .* due at step {first} .* has steps 0 to {first - 1}. Use more than {first} steps"
    )
    with pytest.raises(ValueError, match=message):
        method.check_length(first)
