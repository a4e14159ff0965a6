"""Faults put into ftscale on purpose, one at a time, and the tests that must fail with each.

    python tests/mutants.py [--only NAME ...]

Works in a copy of the checkout's tracked files. A mutant is killed when each of its tests, which pass without it, fails
by an assertion of its own. Ends with 1 where one is not; a run of all goes into benchmarks/results/mutants.json.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import costs
import forks

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/mutants.json"


@dataclass(frozen=True)
class Mutant:
    """A fault: text of a file, which stands there once, and what stands there instead."""

    name: str
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]
    """Node ids of the tests that must fail."""


CHECKPOINT, MANIFEST, RUN, LOOP, STATE = (
    "ftscale/train/checkpoint.py",
    "ftscale/train/manifest.py",
    "ftscale/run/train.py",
    "ftscale/train/loop.py",
    "ftscale/train/state.py",
)
DISTRIBUTED, RUN_FOLDER, SEALED = "ftscale/distributed/runtime.py", "ftscale/run/folder.py", "ftscale/base/sealed.py"
LOAD, SAVE, SCHEMA = "ftscale/models/load.py", "ftscale/models/save.py", "ftscale/config/schema.py"
STRATEGIES, PROCESS_STATE = "ftscale/config/strategies.py", "ftscale/distributed/process_state.py"

OF_CHECKPOINT = "tests/train/test_checkpoint.py::test_"
ON_DISK = tuple(
    f"{OF_CHECKPOINT}a_checkpoint_is_on_the_disk_before_it_has_its_name[{how}]"
    for how in ("at once", "in the background")
)
READ_BACK = tuple(
    f"{OF_CHECKPOINT}a_disk_that_keeps_other_bytes_than_were_written_is_noticed[{how}]"
    for how in ("at once", "in the background")
)
LIBRARYS = f"{OF_CHECKPOINT}what_a_library_writes_into_a_checkpoint_is_on_the_disk_too"
MODEL_ON_DISK = "tests/models/test_save.py::test_a_saved_model_is_on_the_disk_before_it_has_its_name"
OF_LOOP = "tests/train/test_resumed_loop.py::test_"
STEPS = f"{OF_LOOP}steps_of_a_resumed_run_are_those_of_the_unbroken_one"
EVALUATIONS = f"{OF_LOOP}evaluations_and_events_of_a_resumed_run_are_those_of_the_unbroken_one"
END = f"{OF_LOOP}a_resumed_run_ends_as_the_unbroken_one"
STORED = f"{OF_LOOP}what_a_resumed_run_stores_for_the_next_resume_is_what_the_unbroken_one_stores"
IN_A_ROW = f"{OF_LOOP}bad_batches_in_a_row_are_counted_across_a_resume"
STREAM = f"{OF_LOOP}a_resumed_stream_goes_on_behind_the_rows_that_it_has_read"
DRAWN = f"{OF_CHECKPOINT}numbers_drawn_by_python_and_numpy_come_back"
COMES_BACK = f"{OF_CHECKPOINT}weights_optimizer_buffers_and_random_numbers_come_back"
PLANTED = "tests/models/test_load.py::test_code_planted_in_a_folder_runs_only_when_trusted"
PLANTED_BESIDE = "tests/models/test_save.py::test_code_planted_beside"
TAGS = tuple(
    f"tests/config/test_yaml_text.py::test_a_python_tag_is_refused_with_its_line_and_not_run[{tag}]"
    for tag in ("apply", "new")
)
ORDER = "tests/data/test_order.py::test_"
ORACLE = "tests/test_oracle.py::test_losses_norms_and_rates_are_those_of_trainer"
CLIPPED = "tests/distributed/test_runtime.py::test_gradients_longer_than_the_limit_are_shortened_to_it[0.5-expected0]"
RESTORED = "loop.saver.saved = loop.state.progress.step"  # in _resume, when all else has come back


def forgotten(what: str, field: str, empty: str, *tests: str) -> Mutant:
    """A field of Progress that does not come back."""
    lost = f"loop.state.progress.{field} = {empty}; {RESTORED}"
    return Mutant(f"{what} forgotten at resume", RUN, RESTORED, lost, tests)


MUTANTS = (
    Mutant(
        "a computed column read before it is written",
        "ftscale/run/frozen.py",
        "distributed.barrier()",
        "pass",
        (
            "tests/tasks/test_computed.py::"
            "test_values_are_plain_transformers_computed_once_and_read_by_any_number_of_ranks",
        ),
    ),
    # ------------------------------------------------------------ trackers
    Mutant(
        "a tracker that fails gets more lines",
        "ftscale/train/trackers.py",
        "at_work = [tracker for tracker in at_work if _tried(tracker, partial(tracker.log, values, step=step))]",
        "[_tried(tracker, partial(tracker.log, values, step=step)) for tracker in at_work]",
        ("tests/train/test_trackers.py::test_a_tracker_that_fails_is_named_once_and_the_others_get_everything[log]",),
    ),
    Mutant(
        "a resumed run is another one to mlflow",
        "ftscale/train/tracker_kinds.py",
        "return found[0].info.run_id if found else None",
        "return None",
        ("tests/train/test_tracker_kinds.py::test_mlflow_has_one_run_that_was_gone_on_with_and_one_that_failed",),
    ),
    Mutant(
        "steps that are done again stay in the event files",
        "ftscale/train/tracker_kinds.py",
        '{"purge_step": run.step + 1 if run.step else 0}',
        "{}",
        ("tests/train/test_tracker_kinds.py::test_tensorboard_shows_each_step_once",),
    ),
    # ------------------------------------------------------------ full disks
    Mutant(
        "a full disk is a fault of ours",
        "ftscale/base/errors.py",
        "if (said := _said_of_full(error)) is None:",
        "if True:",
        ("tests/test_full_disk.py::test_a_command_says_in_a_sentence_that_its_disk_is_full",),
    ),
    Mutant(
        "a log without room prints tracebacks",
        "ftscale/base/logs.py",
        "if not isinstance(error, OSError):",
        "if True:",
        ("tests/test_full_disk.py::test_lines_of_a_log_that_find_no_room_are_left_out_and_the_run_goes_on",),
    ),
    # ------------------------------------------------------------ strategies
    Mutant(
        "a table that says other than DeepSpeed's file",
        STRATEGIES,
        'Strategy("zero3_offload", stage=3, offload="cpu")',
        'Strategy("zero3_offload", stage=3)',
        ("tests/config/test_strategies.py::test_the_table_says_what_deepspeeds_files_say[zero3_offload]",),
    ),
    Mutant(
        "checkpoints taken over by another optimizer",
        STRATEGIES,
        "(self.is_zero, self.offload) == (other.is_zero, other.offload)",
        "self.is_zero == other.is_zero",
        ("tests/config/test_strategies.py::test_checkpoints_go_round_within_a_family_of_one_optimizer",),
    ),
    Mutant(
        "a strategy told by its name",
        "ftscale/run/launch.py",
        "STRATEGIES[strategy].one_process",
        'strategy == "single"',
        ("tests/config/test_strategies.py::test_nothing_else_compares_a_strategys_name_or_lists_some",),
    ),
    # ------------------------------------------------------------ what is on the disk
    Mutant("no fsync", SEALED, "os.fsync(descriptor)", "pass", (*ON_DISK, LIBRARYS)),
    Mutant("a part's files not synced", CHECKPOINT, "sync(names.values())", "pass", ON_DISK),
    Mutant("a library's files not synced", CHECKPOINT, "sync([path])", "pass", (LIBRARYS,)),
    Mutant("manifest and folders not synced", MANIFEST, "sync([path, *(", "list([path, *(", ON_DISK),
    Mutant("the checkpoint's name not synced", MANIFEST, "sync([final.parent])", "pass", ON_DISK),
    Mutant("the saved model not synced", SAVE, "os.fsync(file)", "pass", (MODEL_ON_DISK,)),
    Mutant(
        "no read-back after a write",
        CHECKPOINT,
        "if hash_file(path) != self._files",
        "if False and self._files",
        READ_BACK,
    ),
    Mutant(
        "folder renamed before its manifest is written",
        MANIFEST,
        "os.rename(folder, final)",
        "text = path.read_text(); path.unlink(); os.rename(folder, final); (final / MANIFEST).write_text(text)",
        ON_DISK,
    ),
    Mutant(
        "write_json in place",
        SEALED,
        "os.replace(partial, path)",
        "path.write_text(partial.read_text()); partial.unlink()",
        ("tests/test_faults.py::test_who_reads_while_a_file_of_the_run_is_written_reads_the_whole_old_one",),
    ),
    # ------------------------------------------------------------ which checkpoint is taken
    Mutant(
        "hash not compared",
        MANIFEST,
        "if contents and hash_file(path) != digest",
        "if False",
        (f"{OF_CHECKPOINT}a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken[flipped]",),
    ),
    Mutant(
        "size not compared",
        MANIFEST,
        "if path.stat().st_size != size",
        "if False",
        (f"{OF_CHECKPOINT}a_torn_checkpoint_does_not_count_among_the_newest",),
    ),
    Mutant(
        "any run_id",
        MANIFEST,
        "if run_id is not None and",
        "if False and",
        (f"{OF_CHECKPOINT}a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken[of another run]",),
    ),
    Mutant(
        "best pruned",
        MANIFEST,
        "if checkpoint.step != best",
        "if True",
        (f"{OF_CHECKPOINT}the_newest_and_the_best_are_kept",),
    ),
    Mutant(
        "snapshot without copy",
        CHECKPOINT,
        "self._room(tensor).copy_(tensor)",
        "tensor",
        (f"{OF_CHECKPOINT}a_background_save_holds_the_state_of_its_step_whatever_training_does_meanwhile",),
    ),
    # ------------------------------------------------------------ what a resume brings back
    Mutant("Python's random state forgotten at resume", PROCESS_STATE, "random.setstate(", "str(", (DRAWN, STEPS)),
    Mutant("numpy's random state forgotten at resume", PROCESS_STATE, "np.random.set_state(", "str(", (DRAWN, STEPS)),
    Mutant("torch's random state forgotten at resume", PROCESS_STATE, "torch.set_rng_state(", "str(", (COMES_BACK,)),
    Mutant("optimizer not restored", DISTRIBUTED, "self.optimizer.load_state_dict(", "str(", (COMES_BACK,)),
    Mutant(
        "weights not restored",
        DISTRIBUTED,
        '_load_trained_state(self.unwrapped, state["weights"])',
        "pass",
        (COMES_BACK,),
    ),
    Mutant("schedule not restored", STATE, "self.schedule.load_state_dict(", "str(", (STEPS, STORED)),
    Mutant(
        "the adapter's importance not restored",
        STATE,
        "self.rule.load_state_dict(",
        "str(",
        ("tests/test_faults.py::test_adalora_goes_on_with_the_importance_it_has_learned",),
    ),
    forgotten("position", "step", "0", STEPS),
    Mutant("data from the start at resume", LOOP, "loop.steps.after(progress.step)", "loop.steps.after(0)", (STEPS,)),
    Mutant("one step on at resume", RUN, RESTORED, f"loop.state.progress.step += 1; {RESTORED}", (STEPS,)),
    Mutant(
        "data one step on at resume",
        LOOP,
        "loop.steps.after(progress.step)",
        "loop.steps.after(progress.step + (progress.step > 0))",
        (STEPS,),
    ),
    Mutant("a stream from the start at resume", STATE, "self.stream.position = StreamPosition", "dict", (STREAM,)),
    forgotten("tokens", "tokens", "0", STORED),
    forgotten("targets", "targets", "0", STORED),
    forgotten("patience count", "bad_evaluations", "0", STEPS, END),
    forgotten("best metric", "best_metric", "None", END),
    forgotten("best step", "best_step", "None", END),
    forgotten("evaluated step", "evaluated", "-1", EVALUATIONS),
    forgotten("the guard's window", "losses", "[]", STEPS, EVALUATIONS),
    forgotten("bad batches in a row", "bad_in_row", "0", IN_A_ROW),
    forgotten("elapsed time", "elapsed_s", "0.0", END),
    Mutant(
        "metrics.jsonl not cut at resume",
        RUN_FOLDER,
        "cut_metrics(folder /",
        "dict(file=folder /",
        (STEPS, EVALUATIONS),
    ),
    Mutant(
        "deadline ignored",
        "ftscale/train/stop_request.py",
        "if before_end_s and ends",
        "if False",
        (
            "tests/train/test_stop_request.py::test_the_end_of_the_jobs_time_is_a_request_that_the_clock_cannot_move",
            "tests/train/test_stop_request.py::test_no_deadline_without_a_launcher_that_names_it_or_with_0",
        ),
    ),
    # ------------------------------------------------------------ whose code runs
    Mutant(
        "checkpoints by unrestricted pickle",
        "ftscale/base/tensor_files.py",
        "mmap=mmap, weights_only=True)",
        "mmap=mmap, weights_only=False)",
        (
            f"{OF_CHECKPOINT}code_planted_in_the_state_is_refused_and_not_run",
            f"{OF_CHECKPOINT}code_planted_in_what_else_was_saved_is_refused_and_not_run",
            "tests/distributed/test_nvme_state.py::test_planted_code_is_refused_and_not_run[sub-group-00000.pt]",
            "tests/distributed/test_nvme_state.py::test_planted_code_is_refused_and_not_run[rest.pt]",
        ),
    ),
    Mutant("an unsafe YAML loader", "ftscale/config/yaml_text.py", "(yaml.SafeLoader)", "(yaml.UnsafeLoader)", TAGS),
    Mutant(
        "code of a model's config always trusted",
        LOAD,
        "revision=config.revision, trust_remote_code=config.trust_remote_code",
        "revision=config.revision, trust_remote_code=True",
        (f"{PLANTED}[config]",),
    ),
    Mutant(
        "code of a model always trusted",
        LOAD,
        "trust_remote_code=config.trust_remote_code,\n        use_safetensors",
        "trust_remote_code=True,\n        use_safetensors",
        (f"{PLANTED}[model]",),
    ),
    Mutant(
        "code of a model to be quantised always trusted",
        LOAD,
        "(build.from_config(model_config, trust_remote_code=config.trust_remote_code)",
        "(build.from_config(model_config, trust_remote_code=True)",
        (f"{PLANTED}[quantised model]",),
    ),
    Mutant(
        "code of a model's twin always trusted",
        LOAD,
        "dtype=torch.float32, trust_remote_code=config.trust_remote_code",
        "dtype=torch.float32, trust_remote_code=True",
        (f"{PLANTED}[twin]",),
    ),
    Mutant(
        "code of tokenizers and image processors always trusted",
        LOAD,
        '{"trust_remote_code": config.trust_remote_code',
        '{"trust_remote_code": True',
        (f"{PLANTED}[tokenizer]", f"{PLANTED}[image processor]"),
    ),
    Mutant(
        "code is trusted by default",
        SCHEMA,
        "trust_remote_code: bool = False",
        "trust_remote_code: bool = True",
        ("tests/models/test_load.py::test_modelling_code_of_the_folder_runs_only_when_trusted",),
    ),
    Mutant(
        "code of a saved config always trusted",
        SAVE,
        "AutoConfig.from_pretrained(folder, trust_remote_code=trust.code)",
        "AutoConfig.from_pretrained(folder, trust_remote_code=True)",
        (f"{PLANTED_BESIDE}_a_saved_config_is_not_run",),
    ),
    Mutant(
        "code of a saved model always trusted",
        SAVE,
        "use_safetensors=True,\n        trust_remote_code=trust.code",
        "use_safetensors=True,\n        trust_remote_code=True",
        (f"{PLANTED_BESIDE}_a_saved_model_is_not_run",),
    ),
    Mutant(
        "code of a saved model trusted by default",
        "ftscale/models/trust.py",
        "    code: bool = False",
        "    code: bool = True",
        (f"{PLANTED_BESIDE}_a_saved_model_is_not_run",),
    ),
    Mutant(
        "code of an adapter's base always trusted",
        SAVE,
        "is with the adapter\n            trust_remote_code=trust.code",
        "is with the adapter\n            trust_remote_code=True",
        (f"{PLANTED_BESIDE}_the_base_of_an_adapter_is_not_run",),
    ),
    Mutant(
        "code of a saved tokenizer always trusted",
        SAVE,
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=trust.code)",
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=True)",
        (f"{PLANTED_BESIDE}_a_saved_tokenizer_is_not_run",),
    ),
    Mutant(
        "code of a saved image processor always trusted",
        SAVE,
        'AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=trust.code)',
        'AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=True)',
        (f"{PLANTED_BESIDE}_a_saved_image_processor_is_not_run",),
    ),
    Mutant(
        "pickled weights allowed by default",
        SCHEMA,
        "allow_pickle: bool = False",
        "allow_pickle: bool = True",
        ("tests/models/test_load.py::test_pickled_weights_load_only_when_asked",),
    ),
    Mutant(
        "pickled weights always allowed",
        LOAD,
        "use_safetensors=None if config.allow_pickle else True",
        "use_safetensors=None",
        ("tests/models/test_load.py::test_pickled_weights_load_only_when_asked",),
    ),
    # ------------------------------------------------------------ the arithmetic
    Mutant("no gradient clipping", DISTRIBUTED, "if self.max_grad_norm:", "if False:", (CLIPPED, f"{ORACLE}[4]")),
    Mutant(
        "the loss divided by the micro-batch's count",
        LOOP,
        "scale * real *",
        "coefficients[name] * (distributed.world_size / (loop.task.count(batch)[name] or 1)) * real *",
        (f"{ORACLE}[4]",),
    ),
    Mutant(
        "shuffling ignores the epoch",
        "ftscale/data/order.py",
        '(self.seed, "order", epoch)',
        '(self.seed, "order", 0)',
        (f"{ORDER}the_order_is_a_function_of_seed_and_epoch",),
    ),
    Mutant(
        "batches of like length ignore the epoch",
        "ftscale/data/order.py",
        '(self.seed, "batches", epoch)',
        '(self.seed, "batches", 0)',
        (f"{ORDER}batches_of_like_length_come_at_other_places_in_each_epoch",),
    ),
    Mutant(
        "a stream's shuffling ignores the epoch",
        "ftscale/data/stream.py",
        '(self.seed, "stream", position.epoch,',
        '(self.seed, "stream", 0,',
        ("tests/data/test_stream.py::test_a_second_epoch_has_the_same_rows_in_another_order",),
    ),
    Mutant(
        "augmentation ignores the epoch",
        "ftscale/modalities/augment.py",
        '(seed, "augment", epoch,',
        '(seed, "augment", 0,',
        ("tests/tasks/test_image_classification.py::test_augmentation_depends_on_row_and_epoch_and_not_on_the_batch",),
    ),
    Mutant(
        "Pillow's warning of many pixels only a warning",
        "ftscale/modalities/image_files.py",
        'simplefilter("error"',
        'simplefilter("default"',
        ("tests/modalities/test_image_files.py::test_the_limit_is_a_setting_above_pillows_own_too",),
    ),
    Mutant(
        "images of any format opened",
        "ftscale/modalities/image_files.py",
        "formats=FORMATS",
        "formats=None",
        ("tests/modalities/test_image_files.py::test_postscript_is_not_opened_whatever_its_name",),
    ),
    Mutant(
        "aliases of YAML without limit",
        "ftscale/config/yaml_text.py",
        "self.repeated > MOST_REPEATED",
        "self.repeated > 10**30",
        ("tests/config/test_yaml_text.py::test_aliases_that_stand_for_millions_of_values_are_refused_at_once[lists]",),
    ),
    Mutant(
        "what other rows told is taken for what these tell",
        "ftscale/run/told.py",
        "*_depends_on(task), *fingerprints]",
        "*_depends_on(task)]",
        ("tests/run/test_told.py::test_other_rows_are_asked_anew",),
    ),
    Mutant(
        "what reading says is not kept with what was read",
        "ftscale/data/prepare.py",
        'for sentence in saved["said"]:',
        "for sentence in ():",
        ("tests/data/test_prepare.py::test_what_reading_says_is_said_by_each_start",),
    ),
    Mutant(
        "prepared rows of a renamed folder are taken for those of the old one",
        "ftscale/data/sources.py",
        "if source.set:",
        "if not source.path:",
        (
            "tests/data/formats/test_derived.py::"
            "test_a_renamed_folder_changes_the_fingerprint_where_its_name_is_in_the_rows",
        ),
    ),
    Mutant(
        "a pattern matches a part of a line",
        "ftscale/data/formats/text.py",
        "pattern.fullmatch(",
        "pattern.search(",
        ("tests/data/formats/test_text.py::test_a_pattern_matches_the_whole_line",),
    ),
    Mutant(
        "the standard input of a run of documents is lines",
        "ftscale/run/new_source.py",
        'source.format == "document" for',
        'source.format == "documents" for',
        ("tests/run/test_new_source.py::test_a_file_of_any_name_is_a_document_where_the_run_has_documents[b.txt]",),
    ),
    Mutant(
        "the label of one file is taken over for another",
        "ftscale/run/new_source.py",
        "role not in own_labels or",
        "role in own_labels or",
        (
            "tests/run/test_new_source.py::"
            "test_the_label_of_one_file_is_not_that_of_another_but_inputs_and_names_of_files_are[a.txt-b.txt]",
        ),
    ),
    Mutant(
        "the rows of a split are taken for those of another file",
        "ftscale/run/new_source.py",
        "if any(names_split(part)",
        "if not any(names_split(part)",
        (
            "tests/run/test_new_source.py::"
            "test_the_place_of_the_rows_is_that_of_one_document_and_a_pattern_that_of_all_lines",
        ),
    ),
    Mutant(
        "what is said of the first of several files is not said of the others",
        "ftscale/run/evaluate.py",
        "for place in range(1, number)",
        "for place in range(number, number)",
        ("tests/run/test_inference.py::test_several_files_are_scored_as_one",),
    ),
    Mutant(
        "the command that goes on with a run replaces it",
        "ftscale/base/started.py",
        'if word != "--overwrite"',
        "if word",
        (
            "tests/base/test_started.py::"
            "test_an_earlier_run_is_not_replaced_again_and_none_is_resumed_that_was_not_begun"
            "[given1-True-run.yaml --resume]",
        ),
    ),
    Mutant(
        "the weights of a saved model are for their owner alone",
        "ftscale/models/save.py",
        "    follow_umask(partial)\n",
        "",
        ("tests/models/test_save.py::test_all_files_of_a_saved_model_and_of_its_export_are_as_the_umask_says[lora]",),
    ),
    Mutant(
        "a column of 0 is a class too",
        "ftscale/data/formats/derived.py",
        "if written and BITS[written]:",
        "if written:",
        ("tests/data/formats/test_derived.py::test_the_names_of_columns_that_hold_1_are_the_classes",),
    ),
    Mutant(
        "compressed files without limit",
        "ftscale/data/formats/packed.py",
        "self._given > self._most",
        "self._given > 10**30",
        ("tests/data/formats/test_base.py::test_a_compressed_bomb_is_refused_while_it_is_unpacked[text-gz-compress]",),
    ),
    Mutant(
        "a broken connection is gone on with from the start",
        "ftscale/data/formats/remote.py",
        "self._stream.seek(self._offset)",
        "self._stream.seek(0)",
        (
            "tests/data/formats/test_remote.py::test_a_connection_that_breaks_in_the_middle_is_gone_on_with[False-parts]",
        ),
    ),
    Mutant(
        "a copy of half a file is read",
        "ftscale/data/formats/copies.py",
        "copy.stat().st_size == remote.size",
        "copy.stat()",
        ("tests/data/formats/test_copies.py::test_a_copy_of_another_size_is_fetched_anew",),
    ),
    Mutant(
        "only the first reference is scored",
        "ftscale/metrics/memory.py",
        "else list(given)",
        "else list(given)[:1]",
        ("tests/tasks/test_seq2seq.py::test_of_several_references_the_first_is_learned_and_all_are_scored",),
    ),
    Mutant(
        "masks are the same in each epoch",
        "ftscale/tasks/masked_lm.py",
        '("mask", sample.epoch, sample.number)',
        '("mask", 0, sample.number)',
        ("tests/tasks/test_masked_lm.py::test_what_is_hidden_follows_from_seed_epoch_and_row_alone",),
    ),
    Mutant(
        "masks of evaluation follow the seed of the run",
        "ftscale/tasks/masked_lm.py",
        "derive_seed(sample.seed if train else 0, *stream)",
        "derive_seed(sample.seed, *stream)",
        ("tests/tasks/test_masked_lm.py::test_what_is_hidden_follows_from_seed_epoch_and_row_alone",),
    ),
    Mutant(
        "special tokens are hidden",
        "ftscale/tasks/masks.py",
        "IGNORED if token in never or unit is None else unit",
        "IGNORED if unit is None else unit",
        (
            "tests/tasks/test_masked_lm.py::test_special_and_unknown_tokens_are_never_hidden_and_a_row_of_them_has_no_target",
        ),
    ),
    Mutant(
        "parts of words are hidden",
        "ftscale/tasks/masks.py",
        "of = words or range(len(ids))",
        "of = range(len(ids))",
        ("tests/tasks/test_masked_lm.py::test_whole_words_are_those_of_transformers_collator",),
    ),
    Mutant(
        "a choice is cut with its question",
        "ftscale/tasks/choice_scoring.py",
        'limit=limit, cut="first"',
        "limit=limit",
        ("tests/tasks/test_multiple_choice.py::test_what_is_cut_is_the_context_and_never_a_choice",),
    ),
    Mutant(
        "rows with few choices have some of probability",
        "ftscale/tasks/choice_scoring.py",
        "padding_value=NO_CHOICE",
        "padding_value=0.0",
        ("tests/tasks/test_multiple_choice.py::test_rows_of_unlike_number_have_a_softmax_each_over_their_own",),
    ),
    Mutant(
        "what is right for a text is its negative",
        "ftscale/tasks/embedding_losses.py",
        "(same_asked @ is_right > 0)",
        "(is_right > 0)",
        ("tests/tasks/test_embedding.py::test_a_text_that_is_right_for_another_row_is_no_negative",),
    ),
    Mutant(
        "a text that stands twice counts twice",
        "ftscale/tasks/embedding_losses.py",
        "(_repeated(once, keys) | ~there)",
        "~there",
        ("tests/tasks/test_embedding.py::test_a_text_that_is_right_for_another_row_is_no_negative",),
    ),
    Mutant(
        "texts are compared within a micro-batch",
        "ftscale/tasks/embedding_losses.py",
        "return replace(step, micro_batches=micro_batches)",
        "return step",
        ("tests/tasks/test_embedding.py::test_however_a_step_is_cut_its_gradient_is_that_of_one_batch[2-infonce]",),
    ),
    Mutant(
        "a text is dropped as itself where it is its own positive",
        "ftscale/tasks/embedding.py",
        "(number ^ (place == 0 and len(ids) > 1), sample.repeat)",
        "(number, sample.repeat)",
        (
            "tests/tasks/test_embedding.py::"
            "test_a_text_is_dropped_by_itself_an_anchor_otherwise_than_what_belongs_to_it",
        ),
    ),
    Mutant(
        "a target's position is that of the token before it",
        "ftscale/tasks/token_sums.py",
        "chosen.nonzero(as_tuple=True)[1] + 1",
        "chosen.nonzero(as_tuple=True)[1]",
        ("tests/tasks/test_causal_lm.py::test_losses_by_position_are_those_of_each_token_in_transformers[padded]",),
    ),
    Mutant(
        "groups are columns of the task",
        "ftscale/tasks/rows.py",
        "if name in own or name not in names",
        "if True",
        ("tests/tasks/test_rows.py::test_what_groups_rows_goes_along_with_the_sample_and_is_no_column_of_the_task",),
    ),
    Mutant(
        "an empty cell moves the choices behind it",
        "ftscale/data/formats/derived.py",
        "return list(found.values())",
        "return _texts(found)",
        ("tests/tasks/test_multiple_choice.py::test_columns_of_choices_keep_their_places_where_a_cell_is_empty",),
    ),
    Mutant(
        "rendered conversations of any length",
        "ftscale/data/rendering.py",
        "len(text) > MOST_CHARACTERS",
        "len(text) > 10**30",
        ("tests/data/test_rendering.py::test_a_long_text_is_refused_before_a_tokenizer_gets_it",),
    ),
    Mutant(
        "sizes of models without limit",
        "ftscale/models/sizes.py",
        "largest <= most",
        "largest <= 10**30",
        ("tests/models/test_sizes.py::test_check_and_train_refuse_a_vocabulary_of_a_million_million",),
    ),
    # ------------------------------------------------------------ coming from elsewhere
    Mutant(
        "a translated batch is that of one process",
        "ftscale/init/trainer.py",
        'draft.put("batch.global_size", size * times * processes,',
        'draft.put("batch.global_size", size * times,',
        ("tests/init/test_huggingface.py::test_a_text_classification_of_the_example_script",),
    ),
    Mutant(
        "a translated run ends with the best weights though the other tool ends with the last",
        "ftscale/init/trainer.py",
        "keeps = best is not None and draft.flag(best)",
        "keeps = best is None or draft.flag(best)",
        ("tests/init/test_trl.py::test_a_lora_on_packed_chats",),
    ),
    Mutant(
        "a share of the run is rounded down",
        "ftscale/init/trainer.py",
        "math.ceil(value * steps)",
        "math.floor(value * steps)",
        ("tests/init/test_huggingface.py::test_steps_go_before_epochs_and_shares_are_of_the_steps",),
    ),
    Mutant(
        "data of a task that there is not become the nearest task",
        "ftscale/init/guide.py",
        "        refuse_rows(found)\n",
        "        pass\n",
        (
            "tests/init/test_every_set.py::test_data_of_a_task_that_there_is_not_are_told_by_what_they_are_for[preference/llamafactory_demo/kto_en_demo.json]",
        ),
    ),
    Mutant(
        "a question is answered by what is likely though somebody sits at the terminal",
        "ftscale/init/doubts.py",
        "if self.ask is not None and len(options) > 1:",
        "if self.ask is None and len(options) > 1:",
        ("tests/init/test_doubts.py::test_what_is_not_sure_is_asked_on_a_terminal",),
    ),
    Mutant(
        "the other parts of a folder are overlooked",
        "ftscale/init/parts.py",
        'return Parts(sources.pop("train"), sources, why)',
        'return Parts(sources.pop("train"), {}, why)',
        ("tests/init/test_parts.py::test_files_beside_a_training_file_are_its_other_parts",),
    ),
    Mutant(
        "the doctor shows the hub's token",
        "ftscale/doctor/machine.py",
        'f"there is one (by {names[0]})"',
        'f"there is one (by {os.environ.get(names[0])})"',
        ("tests/doctor/test_machine.py::test_a_token_is_there_or_not_and_never_shown",),
    ),
    Mutant(
        "what a link leads to is not bound in a container",
        "ftscale/cluster/container.py",
        "(_folder(path), _folder(os.path.realpath(path)))",
        "(_folder(path),)",
        ("tests/cluster/test_container.py::test_a_link_is_bound_with_what_it_leads_to",),
    ),
    Mutant(
        "a finished run that asks for no more is submitted",
        "ftscale/cluster/submit.py",
        "if request.resume:",
        "if False:",
        ("tests/cluster/test_submit.py::test_a_finished_run_that_asks_for_no_more_is_refused",),
    ),
    Mutant(
        "a printed recipe keeps the places of a checkout",
        "ftscale/config/recipes.py",
        "json.dumps(str(_PACKAGE.parent / found[0]))",
        "found[0]",
        ("tests/config/test_recipes.py::test_a_recipe_is_the_same_run_anywhere[help_desk]",),
    ),
    Mutant(
        "each step has the masks of the one before",
        "ftscale/models/masks.py",
        'derive_seed(self.seed, "dropout", self.step)',
        'derive_seed(self.seed, "dropout")',
        ("tests/models/test_masks.py::test_masks_of_neighbours_are_independent[steps]",),
    ),
    Mutant(
        "a mask's words are mixed with their sign",
        "ftscale/models/masks.py",
        "shifted.bitwise_and_((1 << (64 - shift)) - 1)",
        "shifted",
        ("tests/models/test_masks.py::test_a_key_draws_the_numbers_of_splitmix64_that_has_it_as_its_seed",),
    ),
    Mutant(
        "a row that stands twice in a step has one mask",
        "ftscale/data/loader.py",
        "repeat=int(repeat)",
        "repeat=0",
        ("tests/data/test_loader.py::test_a_row_that_stands_twice_in_a_step_is_told_apart_in_any_cut[1-1]",),
    ),
    Mutant(
        "an older run goes on with other masks than it began with",
        "ftscale/run/folder.py",
        'manifest.get("dropout", "by_process")',
        'manifest.get("dropout", "auto")',
        ("tests/run/test_dropout.py::test_a_resumed_run_goes_on_as_it_began_and_one_of_an_older_version_by_process",),
    ),
    Mutant(
        "LayerDrop is taken for dropout by row",
        "ftscale/run/dropout.py",
        "        if drawn:",
        "        if False:",
        (
            "tests/run/test_dropout.py::test_a_model_with_other_chance_draws_by_process_and_one_line_says_why[LayerDrop]",
        ),
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[mutant.name for mutant in MUTANTS])
    only = parser.parse_args().only
    chosen = [mutant for mutant in MUTANTS if only is None or mutant.name in only]
    start, tried = time.monotonic(), commit()
    with copied_checkout() as checkout:
        check_unmutated(checkout, chosen)
        survived = [mutant.name for mutant in chosen if not is_killed(mutant, checkout)]
    seconds = round(time.monotonic() - start, 1)
    print(f"{len(chosen)} mutants, {len(chosen) - len(survived)} killed, {len(survived)} survived, {seconds} s")
    if only is None:
        counts = {"mutants": len(chosen), "killed": len(chosen) - len(survived), "survived": survived}
        RESULTS.write_text(json.dumps({"commit": tried, **counts, "seconds": seconds}, indent=1) + "\n")
    return int(bool(survived))


@contextmanager
def copied_checkout() -> Iterator[Path]:
    """The tracked files in a folder of their own, beside them ../shared."""
    with tempfile.TemporaryDirectory(prefix="ftscale-mutants-") as made:
        checkout = Path(made) / ROOT.name
        listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
        for name in filter(None, listed.stdout.split("\0")):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
        (checkout.parent / "shared").symlink_to(ROOT.parent / "shared")
        # by their hashes: of a file that changes twice in a second the time does not tell which one was compiled
        hashed = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(checkout / "ftscale", quiet=1, invalidation_mode=hashed)
        yield checkout


def check_unmutated(checkout: Path, mutants: list[Mutant]) -> None:
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    found = outcomes(checkout, tests)
    wrong = {test: found.get(test, "not found") for test in tests if found.get(test) != "passed"}
    if wrong:
        sys.exit(f"not passed without a mutant: {json.dumps(wrong, indent=1)}")
    print(f"{len(tests)} tests pass without a mutant", flush=True)


def is_killed(mutant: Mutant, checkout: Path) -> bool:
    """Whether all of its tests fail with it; says so."""
    start = time.monotonic()
    path = checkout / mutant.file
    source = path.read_text()
    path.write_text(mutated(mutant, source))
    try:
        found = outcomes(checkout, list(mutant.tests))
    finally:
        path.write_text(source)
    wrong = {test: found.get(test, "not found") for test in mutant.tests if found.get(test) != "failed"}
    print(f"{'survived' if wrong else 'killed':8}  {mutant.name}, {time.monotonic() - start:.1f} s", flush=True)
    for test, outcome in wrong.items():
        print(f"          {test}: {outcome}", flush=True)
    return not wrong


def mutated(mutant: Mutant, source: str) -> str:
    """The text of a file with the fault in it. Raises ValueError where it does not fit."""
    if (count := source.count(mutant.text)) != 1:
        raise ValueError(f"{mutant.name}: {mutant.text!r} stands {count} times in {mutant.file}, not once")
    return source.replace(mutant.text, mutant.replacement)


def outcomes(checkout: Path, tests: list[str]) -> dict[str, str]:
    """How the tests end in a process that has not imported ftscale; see outcomes.py."""
    results = checkout.parent / "results.json"
    results.unlink(missing_ok=True)
    others = (forks.FOLDER, costs.RESULTS)  # this process's server of forks, and the campaign's results
    environment = {name: value for name, value in os.environ.items() if name not in others}
    program = Path(__file__).with_name("outcomes.py").read_text()
    done = forks.fresh_python(program, str(checkout), str(results), *tests, environment=environment)
    found = json.loads(results.read_text()) if results.is_file() else {}
    if missing := [test for test in tests if test not in found]:
        print(f"did not run: {missing}\n{done.stdout[-4000:]}{done.stderr[-4000:]}", file=sys.stderr)
    return found


def commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
