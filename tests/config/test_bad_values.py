"""Command lines that cannot run: refused in one line before anything is written, with the key to change.

The wording of the messages stands in tests/messages.txt.
"""

import pytest

from tests.conftest import SMALL
from tests.errors import recorded_errors, reported

BAD = {
    "metod=ce": ("unknown_key", "metod"),
    "method=lgit": ("unknown_option", "method"),
    "student=resnet19": ("unknown_option", "student"),
    "pair=r50": ("unknown_option", "pair"),
    "method.temprature=3": ("unknown_key", "method.temprature"),
    "recipe.epcohs=3": ("unknown_key", "recipe.epcohs"),
    "+recipe.epcohs=3": ("unknown_key", "recipe.epcohs"),
    "+teacher.recipe.foo=1": ("unknown_key", "teacher.recipe.foo"),
    "+method.foo=1": ("unknown_key", "method.foo"),
    "+student.dpth=8": ("unknown_key", "student.dpth"),
    "+teacher.sed=1": ("unknown_key", "teacher.sed"),
    "+seed=1": ("existing_key", "seed"),
    "student={a:1}": ("existing_key", "student"),
    "student=[a,b]": ("unknown_option", "student"),
    "study=lab": ("unknown_key", "study"),
    "+foo=1": ("unknown_key", "foo"),
    "recipe.lr=nan": ("out_of_range", "recipe.lr"),
    "recipe.lr=abc": ("wrong_type", "recipe.lr"),
    "recipe.lr=-1": ("out_of_range", "recipe.lr"),
    "recipe.epochs=0": ("out_of_range", "recipe.epochs"),
    "recipe.epochs=1.5": ("wrong_type", "recipe.epochs"),
    "recipe.batch_size=99999999999999999999": ("out_of_range", "recipe.batch_size"),
    "recipe.batch_size=1": ("out_of_range", "recipe.batch_size"),
    "recipe.batch_size=63": ("single_image_batch", "recipe.batch_size"),
    "recipe.min_lr=1": ("out_of_range", "recipe.min_lr"),
    "recipe.momentum=0": ("out_of_range", "recipe.momentum"),
    "recipe.on_nonfinite=ignore": ("out_of_range", "recipe.on_nonfinite"),
    "recipe=null": ("unknown_option", "recipe"),
    "method=[ce,logit]": ("several_options", "method"),
    "data.augment=2": ("wrong_type", "data.augment"),
    "overwrite=yep": ("wrong_type", "overwrite"),
    "on_busy=queue": ("out_of_range", "on_busy"),
    "checkpoint.grace_seconds=0": ("out_of_range", "checkpoint.grace_seconds"),
    "teacher.recipe=paper": ("wrong_type", "teacher.recipe"),
    "teacher.cache=maybe": ("out_of_range", "teacher.cache"),
    "output_root=null": ("wrong_type", "output_root"),
    f"output_root={'x' * 300}": ("out_of_range", "output_root"),
    "output_root='~nobody-here/runs'": ("out_of_range", "output_root"),
    f"teacher.checkpoint={'x' * 300}": ("out_of_range", "teacher.checkpoint"),
    f"++student.name={'x' * 65}": ("out_of_range", "student.name"),
    "hydra.mode=nothing": ("composition", "hydra.mode"),
    "hydra.searchpath=[nothing]": ("not_found", "hydra.searchpath"),
    f"{'x' * 300}=1": ("composition", ""),
    "hydra.foo=1": ("unknown_key", "hydra.foo"),
    "~seed": ("usage", "seed"),
    "seed=${nothing}": ("interpolation", "seed"),
    "student.stages=null": ("wrong_type", "student.stages"),
    "student.stages.layer1=nope": ("not_found", "student.stages"),
    "student._target_=5": ("not_importable", "student._target_"),
    "student._target_=no.such.path": ("not_importable", "student._target_"),
    "method.temperature=0": ("out_of_range", "method.temperature"),
    "method.temperature=1e300": ("out_of_range", "method.temperature"),
    "method.temperature=inf": ("out_of_range", "method.temperature"),
    "method.alpha=1.5": ("out_of_range", "method.alpha"),
    "method.ce_weight=1": ("conflicting_weights", "method.alpha"),
    "method.alpha=null": ("missing_value", "method.alpha"),
    "method._target_=os.system": ("not_importable", "method._target_"),
    "method._target_=collections.Counter": ("no_method", "method._target_"),
    "teacher=none": ("no_teacher", "teacher"),
    "++method.name=../../away": ("out_of_range", "method.name"),
    "++student.name=../../away": ("out_of_range", "student.name"),
    "teacher.recipe.epochs=0": ("out_of_range", "teacher.recipe.epochs"),
    "teacher.seed=-1": ("out_of_range", "teacher.seed"),
    "teacher.checkpoint=/nowhere.pth": ("not_found", "teacher.checkpoint"),
    "seed=1.5": ("wrong_type", "seed"),
    "data.num_train=200000": ("out_of_range", "data.num_train"),
    "data.num_val=0": ("out_of_range", "data.num_val"),
    "data.std=[1,1]": ("mismatch", "data.mean"),
    "data.name='a\nb'": ("unknown_key", "data.name"),
    "student='a\nb\u2028'": ("unknown_option", "student"),
    "data=cifar11": ("unknown_option", "data"),
    "runtime.device=gpu": ("out_of_range", "runtime.device"),
    "runtime.device=cuda:99": ("unavailable_device", "runtime.device"),
    "runtime.precision=fp16": ("unavailable_device", "runtime.precision"),
    "runtime.precision=fp8": ("out_of_range", "runtime.precision"),
    "runtime.threads=0": ("out_of_range", "runtime.threads"),
    "runtime.threads=100000": ("out_of_range", "runtime.threads"),
    "output_root=/dev/null/x": ("not_writable", "output_root"),
    "output_root=/proc/nothing": ("not_writable", "output_root"),
    "method=ce,logit": ("needs_multirun", "method"),
    "recipe.lr=[1": ("unreadable_override", "recipe.lr"),
    "recipe": ("unreadable_override", "recipe"),
    "--nonsense": ("usage", ""),
    "--config-dir=/nowhere": ("not_found", "--config-dir"),
    "--config-name=nothing": ("unknown_option", "--config-name"),
    "experiment=nothing": ("unknown_option", "experiment"),
    "student.stem=small": ("unknown_key", "student.stem"),
}
"""Code and key of the error for each argument beside those of a small run."""

EVERY_DAY = (
    "method=lgit", "recipe.lr=nan", "~seed", "student.stages.layer1=nope", "teacher=none", "output_root=/dev/null/x",
    "--nonsense",
)  # fmt: skip
"""One of each kind; the others are slow tests. tests/messages.txt has codes and keys of most of them every day."""
assert set(EVERY_DAY) <= set(BAD)


@pytest.mark.parametrize(
    ("argument", "code", "key"),
    [pytest.param(name, *BAD[name], marks=() if name in EVERY_DAY else pytest.mark.wide) for name in BAD],
)
def test_a_wrong_argument_is_one_line_with_exit_code_2_and_nothing_is_written(kdbench, tmp_path, argument, code, key):
    with recorded_errors() as made:
        result = kdbench(*SMALL, "output_root=out", argument)
    assert result.code == 2, result.err
    assert result.err.startswith("kdbench: error: ")
    assert reported(made, result.err) == [(code, key)], result.err
    assert not list((tmp_path / "home").iterdir())


def test_keys_of_a_teacher_that_the_method_does_not_use_are_checked_too(kdbench):
    with recorded_errors() as made:
        result = kdbench(*SMALL, "method=ce", "teacher.recipe.lr=nan")
    assert result.code == 2
    assert reported(made, result.err) == [("out_of_range", "teacher.recipe.lr")]
