"""Job scripts: what is filled in, and that nothing else changes."""

from __future__ import annotations

import subprocess

import pytest

from ftscale.base.errors import UserError
from ftscale.base.resources import resource
from ftscale.cluster.render import fill

TEMPLATES = ("train.sbatch", "array.sbatch", "evaluate.sbatch")


def template(name: str = "train.sbatch") -> str:
    return resource("slurm", name).read_text()


@pytest.mark.parametrize("name", TEMPLATES)
def test_nothing_filled_in_is_the_template(name: str):
    assert fill(template(name), options={}, variables={}) == template(name)


def test_options_replace_their_lines_and_new_ones_follow():
    text = fill(
        template(), options={"nodes": "4", "account": "physics", "requeue": None, "exclusive": ""}, variables={}
    )
    lines = text.splitlines()
    assert "#SBATCH --nodes=4" in lines
    assert lines.count("#SBATCH --account=physics") == 1
    assert "#SBATCH --exclusive" in lines
    assert not any(line.startswith(("#SBATCH --nodes=1", "#SBATCH --requeue")) for line in lines)
    assert max(n for n, line in enumerate(lines) if line.startswith("#SBATCH")) < lines.index("set -euo pipefail")


def test_an_option_keeps_its_comment_and_no_other_of_like_name_is_touched():
    lines = fill(template(), options={"time": "10"}, variables={}).splitlines()
    assert "#SBATCH --time=10" in lines
    assert any(line.startswith("#SBATCH --ntasks-per-node=1  ") and "# for every launcher" in line for line in lines)


def test_variables_are_quoted_for_bash():
    text = fill(template(), options={}, variables={"SCRATCH": "/local disk/$USER", "INTERFACE": ""})
    settings = text[text.index("LAUNCHER=") : text.index("# environment")]
    program = f'{settings}\nprintf "%s|" "$SCRATCH" "$INTERFACE" "$LAUNCHER"'
    done = subprocess.run(["bash", "-euc", program], capture_output=True, text=True, check=True)
    assert done.stdout == "/local disk/$USER||torchrun|"


@pytest.mark.parametrize("value", ["x\ntouch PWN\n#", "x\rtouch PWN", "x\x00", "x\u2028"])
def test_a_value_of_several_lines_is_refused(value: str):
    for options, variables in (({"partition": value}, {}), ({}, {"SCRATCH": value}), ({value: "1"}, {})):
        with pytest.raises(UserError, match="line ends or other control characters|is no option of sbatch"):
            fill(template(), options=options, variables=variables)


@pytest.mark.parametrize("name", ["qos long", "-x", "", "wrap=touch PWN"])
def test_an_option_has_the_name_of_one(name: str):
    with pytest.raises(UserError, match="is no option of sbatch"):
        fill(template(), options={name: "1"}, variables={})


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("END,FAIL", "END,FAIL"),
        ("a100&nvme", "a100&nvme"),
        ("/runs/my run/%j.log", '"/runs/my run/%j.log"'),
        ("it's", '"it\'s"'),
        ('a "b" \\c', '"a \\"b\\" \\\\c"'),
        ("a  # b", '"a  # b"'),
    ],
)
def test_a_value_with_spaces_and_quotes_is_one_word_to_sbatch(value: str, line: str):
    assert f"#SBATCH --comment={line}\n" in fill(template(), options={"comment": value}, variables={})


def test_an_unknown_variable_is_a_mistake_of_ours():
    with pytest.raises(StopIteration):
        fill(template(), options={}, variables={"NOT_THERE": "1"})


def test_set_up_lines_stand_in_the_place_of_the_templates_own():
    text = fill(template(), options={}, variables={}, setup=("module load cuda", "source env/bin/activate"))
    assert "module load cuda\nsource env/bin/activate\n\n" in text
    assert ".venv/bin/activate" not in text


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_variable_has_a_comment(name: str):
    text = template(name)
    block = text[text.index("set -euo pipefail") : text.index("# environment")].splitlines()[2:-1]
    assert block
    assert all(line.count("  # ") == 1 for line in block), block


def test_the_two_training_scripts_have_the_same_variables():
    first, second = (
        template(name)[template(name).index("LAUNCHER=") : template(name).index("# environment")]
        for name in TEMPLATES[:2]
    )
    assert first == second
