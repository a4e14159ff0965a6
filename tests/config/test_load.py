"""YAML and the command line into a configuration, every mistake into one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftscale.base.errors import UserError
from ftscale.config import load_config, parse_config, write_config
from ftscale.config.load import config_digest, config_schema, differences
from ftscale.config.problems import _OTHER_NAMES, _all_settings
from ftscale.config.schema import Config
from ftscale.config.yaml_text import read_yaml, write_yaml

RUN = """\
task: text_classification
run_folder: runs/first
model: some/encoder
data:
  train: train.csv
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    """What is said about it, without the name of the file."""
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return [
        text.removeprefix(f"{path} and the command line: ").removeprefix(f"{path}: ") for text in caught.value.problems
    ]


# ------------------------------------------------------------ what is read


def test_the_short_forms_stand_for_sections(run: Path):
    config = load_config(run)
    assert config.task.name == "text_classification"
    assert config.model.name == "some/encoder"
    assert [source.path for source in config.data.train] == ["train.csv"]


def test_the_command_line_wins_over_the_file_and_the_file_over_the_default(run: Path):
    run.write_text(RUN + "optimizer: {lr: 1e-3, weight_decay: 0.1}\n")
    config = load_config(run, ["optimizer.lr=2e-4"])
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.momentum) == (2e-4, 0.1, 0.9)


def test_the_last_of_two_overrides_wins(run: Path):
    assert load_config(run, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("1.5e-3", 1.5e-3),
        (".5", 0.5),
        ("-3", -3),
        ("10_000", 10_000),
        ("010", "010"),
        ("12:30:45", "12:30:45"),
        ("2024-01-31", "2024-01-31"),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("0x1f", "0x1f"),
        ("e5", "e5"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object):
    read = read_yaml(f"key: {text}", source="a test")["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "value", ["1e-5", "no", "on", "010", "12:30", "2024-01-31", "null", "~", "", "# 1", "a: b", "1_0"]
)
def test_texts_that_look_like_something_else_survive_writing(value: str):
    assert read_yaml(write_yaml({"key": value}), source="a test") == {"key": value}


def test_labels_named_no_and_on_stay_texts(run: Path):
    run.write_text(RUN.replace("task: text_classification", "task: {name: text_classification, labels: [no, on, off]}"))
    assert load_config(run).task.labels == ("no", "on", "off")


def test_overrides_reach_into_short_forms_and_lists(run: Path):
    config = load_config(
        run,
        [
            "task.max_length=128",
            "model.revision=main",
            "data.train.0.columns.text=sentence",
            "data.train.1=more.csv",
            "data.eval=held_out.csv",
            "task.labels=[ham, spam]",
            "model.overrides={num_hidden_layers: 2}",
        ],
    )
    assert (config.task.name, config.task.max_length, config.task.labels) == (
        "text_classification",
        128,
        ("ham", "spam"),
    )
    assert (config.model.name, config.model.revision) == ("some/encoder", "main")
    assert [source.path for source in config.data.train] == ["train.csv", "more.csv"]
    assert config.data.train[0].columns == {"text": "sentence"}
    assert [source.path for source in config.data.eval] == ["held_out.csv"]
    assert config.model.overrides == {"num_hidden_layers": 2}


def test_an_override_reaches_into_a_list_of_the_file(run: Path):
    run.write_text(RUN.replace("train: train.csv", "train: [a.csv, {path: b.csv, weight: 2}]"))
    config = load_config(run, ["data.train.1.path=c.csv"])
    assert [(source.path, source.weight) for source in config.data.train] == [("a.csv", 1.0), ("c.csv", 2.0)]


@pytest.mark.parametrize("text", ["#### (.+)", "answer: (.+)", "is # (.+)", "a=b"])
def test_an_override_that_is_plain_text_is_taken_whole(run: Path, text: str):
    config = load_config(run, ["task=causal_lm", f"task.answer_pattern={text}"])
    assert config.task.answer_pattern == text


def test_keys_of_an_adapter_are_those_of_peft(run: Path):
    config = load_config(run, ["adapter.method=lora", "adapter.r=16", "adapter.use_rslora=true"])
    assert config.adapter.model_dump() == {"method": "lora", "r": 16, "use_rslora": True}


# ------------------------------------------------------------ what is refused


def test_several_mistakes_are_reported_together(run: Path):
    run.write_text(
        RUN + "optimizer: {lr: -1, betas: 0.9}\ntrain: {max_steps: 1.5}\nschedule: cosine\nlearning_rate: 3\n"
    )
    assert problems(run) == [
        "optimizer.lr = -1 must be greater than 0.0; set a larger number (Peak learning rate).",
        "optimizer.betas = 0.9 must be a list; write it as [first, second] "
        "(Momentum coefficients; null = the optimizer's own).",
        "schedule = 'cosine' must be a section of settings; write {name: cosine} "
        "(The learning rate over optimizer steps).",
        "train.max_steps = 1.5 must be a whole number; set one (Optimizer steps; 0 = by `epochs`).",
        "learning_rate is not a setting; did you mean optimizer.lr?",
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lrr=1", "optimizer.lrr is not a setting; did you mean optimizer.lr?"),
        ("task.max_len=1", "task.max_len is not a setting; did you mean task.max_length?"),
        ("data.train.0.pat=x", "data.train.0.pat is not a setting; did you mean data.train.0.path?"),
        ("globalsize=4", "globalsize is not a setting; did you mean batch.global_size?"),
        ("optimizr.lr=1", "optimizr is not a setting; did you mean optimizer?"),
        ("train.output_dir=x", "train.output_dir is not a setting; did you mean run_folder?"),
        (
            "checkpoint.zzz=1",
            "checkpoint.zzz is not a setting; the settings of checkpoint are: every, keep, async, before_end_s, prove.",
        ),
        ("task=text_clasification", "task = 'text_clasification' is not known; did you mean 'text_classification'?"),
        ("train.precision=bf15", "train.precision = 'bf15' is not known; did you mean 'bf16'?"),
        ("task.too_long=cut", "task.too_long = 'cut' is not known; known: drop, raise, truncate."),
        ("train.max_steps=true", "train.max_steps = true must be a number; set one."),
        ("optimizer.lr=.nan", "optimizer.lr = nan must be a finite number; set one (Peak learning rate)."),
        (
            "model={revision: main}",
            "model.name is missing; set it (Hub id, or a local folder (weights, or a "
            "config.json alone with `init: random`)).",
        ),
        (
            "task={max_length: 8}",
            "task.name is missing; set one of: causal_lm, embedding, image_classification, masked_lm, multiple_choice, "
            "question_answering, reranking, seq2seq, text_classification, token_classification.",
        ),
        (
            "data.train=[]",
            "data.train = [] must not be empty; name at least one (Training sources: a path, a "
            "source, or a list of them).",
        ),
        (
            "task.labels=[1, a]",
            "task.labels.0 = 1 must be text; put it in quotes (Class names in the order of their ids, or numbers that "
            "the files write to names, e.g. {0: repair}, or a text file with a name a line (JSON: a list or a "
            "mapping); null = those of the training data, sorted).",
        ),
        (
            "evaluation.before=maybe",
            "evaluation.before = 'maybe' must be true or false; set one of them (Also evaluate before the first step).",
        ),
        ("optimizer.lr", "'optimizer.lr' must be section.key=value; write e.g. optimizer.lr=2e-4."),
        ("=3", "'=3' must be section.key=value; write e.g. optimizer.lr=2e-4."),
        (
            "data.train.5=x",
            "'data.train.5=x': data.train is a list of 1, so '5' must be a place in it; write "
            "data.train.0 for the first.",
        ),
    ],
)
def test_a_wrong_override_is_one_sentence(run: Path, override: str, said: str):
    assert problems(run, override) == [said]


def test_an_override_cannot_lead_through_a_number(run: Path):
    run.write_text(RUN + "seed: 3\n")
    assert problems(run, "seed.x=1") == ["'seed.x=1': seed = 3 is not a section and has no 'x'; set seed itself."]


def test_an_empty_file_names_every_setting_that_must_be_set(tmp_path: Path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert [text.split(";")[0] for text in problems(path)] == [
        "task is missing",
        "run_folder is missing",
        "model is missing",
        "data is missing",
    ]


def test_a_wrong_source_is_said_without_the_empty_list_that_follows(run: Path):
    run.write_text(RUN.replace("train: train.csv", "train: {pth: train.csv}"))
    assert sorted(text.split(";")[0] for text in problems(run)) == [
        "data.train.path is missing",
        "data.train.pth is not a setting",
    ]


def test_a_key_twice_is_refused_with_both_lines(run: Path):
    run.write_text(RUN + "seed: 1\nseed: 2\n")
    assert problems(run) == [
        f"{run}, line 7, column 1: not valid YAML: key 'seed' stands here and in line 6; mend that line."
    ]


def test_malformed_yaml_is_refused_with_its_line(run: Path):
    run.write_text(RUN + "optimizer: {lr: 1\nseed: 1\n")
    (said,) = problems(run)
    assert said.startswith(f"{run}, line 7, column 5: not valid YAML: ")


def test_a_file_that_is_a_list_is_refused(run: Path):
    run.write_text("- a\n- b\n")
    assert problems(run) == [f"{run} must hold sections of keys and values, holds a list; see `ftscale schema`."]


def test_bytes_that_are_not_utf8_are_named(run: Path):
    run.write_bytes(RUN.encode() + b"# gr\xfc\xdfe\n")
    assert problems(run) == [f"{run}, line 6: byte 0xfc is not UTF-8; save the file as UTF-8."]


def test_a_missing_file_is_named_with_its_nearest_sibling(run: Path):
    wrong = run.with_name("rum.yaml")
    assert problems(wrong) == [f"config file {str(wrong)!r} does not exist; did you mean {str(run)!r}?"]


def test_a_folder_is_answered_with_the_configuration_in_it(run: Path):
    run.rename(run.with_name("config.yaml"))
    (said,) = problems(run.parent)
    assert said.endswith(f"did you mean {str(run.with_name('config.yaml'))!r}?")


def test_the_source_of_a_dict_is_named_in_its_errors():
    with pytest.raises(UserError, match="^the test: task is missing"):
        parse_config({"run_folder": "x", "model": "m", "data": {"train": "a.csv"}}, source="the test")


def test_names_of_other_tools_lead_to_settings_that_exist():
    assert set(_OTHER_NAMES.values()) <= {dotted for dotted, _ in _all_settings(Config)}


# ------------------------------------------------------------ what is written


def test_a_written_configuration_reads_back_as_the_same(run: Path, tmp_path: Path):
    config = load_config(
        run,
        ["task.labels=[no, '1e-5', '010']", "optimizer.betas=[0.9, 0.95]", "optimizer.eps=1e-8", "adapter.method=lora"],
    )
    written = tmp_path / "config.yaml"
    write_config(config, written)
    assert load_config(written) == config
    assert "momentum: 0.9" in written.read_text()  # defaults are written out
    assert sorted(item.name for item in tmp_path.iterdir()) == ["config.yaml", "run.yaml"]


def test_the_digest_tells_configurations_apart(run: Path):
    assert config_digest(load_config(run)) == config_digest(load_config(run, ["seed=0"]))
    assert config_digest(load_config(run)) != config_digest(load_config(run, ["seed=1"]))


def test_differences_name_each_setting_that_changed(run: Path):
    old = load_config(run, ["adapter.method=lora", "adapter.r=8"])
    new = load_config(run, ["optimizer.lr=1e-4", "adapter.method=lora", "adapter.lora_alpha=4", "data.train.0.limit=9"])
    assert differences(old, new) == [
        "adapter.r: 8 -> (not set)",
        "adapter.lora_alpha: (not set) -> 4",
        "data.train.0.limit: 0 -> 9",
        "optimizer.lr: 5e-05 -> 0.0001",
    ]
    assert differences(old, old) == []


def test_lists_of_other_lengths_are_shown_whole(run: Path):
    old, new = load_config(run), load_config(run, ["data.train=[train.csv, more.csv]"])
    assert differences(old, new) == [
        'data.train: [{"path": "train.csv"}] -> [{"path": "train.csv"}, {"path": "more.csv"}]'
    ]


def test_the_json_schema_allows_the_short_forms_and_describes_settings():
    schema = config_schema()
    assert schema["additionalProperties"] is False
    allowed = schema["properties"]["task"]["anyOf"]
    assert "text_classification" in allowed[0]["enum"]
    assert {"type": "string"} in schema["properties"]["model"]["anyOf"]
    sources = schema["$defs"]["DataConfig"]["properties"]["train"]["anyOf"]
    assert [option.get("type", "section") for option in sources] == ["string", "section", "array"]
    assert schema["$defs"]["OptimizerConfig"]["properties"]["lr"]["description"] == "Peak learning rate."


@pytest.mark.parametrize(
    "tag", ["object/apply:os.mkdir [made]", "object/new:os.mkdir [made]", "name:os.system", "module:os"]
)
def test_no_tag_of_python_runs_or_is_loaded(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(f"seed: !!python/{tag}\n")
    with pytest.raises(
        UserError, match=r"run\.yaml, line 1, column 7: not valid YAML: could not determine a constructor"
    ):
        load_config("run.yaml")
    assert not (tmp_path / "made").exists()
