"""What tests cost, and which are too expensive for every run.

Nearly all of the time of a test is tracing and compilation, and a few hundred tests take most of
it: products over structures, methods and lengths, of which one example runs with `make test` and
all run with `make test-all`. Which ones wait is decided by measurement, in three steps::

    python -m pytest -n 2 --dist loadfile --costs /tmp/costs   # a folder; on a quiet machine
    python -m tests.costs /tmp/costs                            # where the time goes
    python -m tests.costs /tmp/costs --write                    # renew tests/slow.txt

A test is judged by its own time: what it shares with others, such as a run that a module's tests
read, is made by whichever comes first. One that is measured again, with ``-m slow``, leaves the
list if it has become cheap. A test is known by its room and its name, so that moving it to another
file changes nothing. A marker in the file, ``@pytest.mark.slow``, says the same for a test that is
slow by its nature.
"""

import argparse
import fnmatch
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

LIST = Path(__file__).with_name("slow.txt")
MOST_SECONDS = 0.5
# One example of what is otherwise a product, and what would be missed most: run every time,
# whatever they cost. Patterns of `name_of`; fnmatch reads brackets as sets, so they are "?".
KEPT = (
    "analysis::test_a_head_alone_has_its_own_kernel?diagonal_full?",
    "engines::test_every_method_has_the_gradients_of_sequential?scalar-65?",
    "engines::test_every_method_has_the_gradients_of_sequential?low_rank-65?",
    "engines::test_every_method_has_the_gradients_of_sequential?complex_per_state-65?",
    "engines::test_every_method_has_the_gradients_of_sequential?diagonal_per_state-65?",
    "engines::test_every_method_has_the_gradients_of_sequential?dense-7?",
    "engines::test_states_and_cotangents_cross_chunks_and_segments*",
    "engines::test_values_and_gradients_are_those_of_the_steps?real-16?",
    "engines::test_every_method_gives_the_values_of_the_loop?scalar-65?",
    "engines::test_every_method_gives_the_values_of_the_loop?scalar_summed-65?",
    "engines::test_every_method_gives_the_values_of_the_loop?scalar_ranked-65?",
    "engines::test_every_method_gives_the_values_of_the_loop?diagonal_per_state-65?",
    "engines::test_every_method_gives_the_values_of_the_loop?diagonal_full-65?",
    "engines::test_every_method_gives_the_values_of_the_loop?diagonal_factored-65?",
    "engines::test_every_method_gives_the_values_of_the_loop?diagonal_signed-65?",
    "engines::test_every_method_gives_the_values_of_the_loop?complex_per_state-65?",
    "engines::test_every_method_gives_the_values_of_the_loop?complex_lti-65?",
    "engines::test_every_method_gives_the_values_of_the_loop?low_rank-65?",
    "engines::test_every_method_gives_the_values_of_the_loop?dense-65?",
    "engines::test_every_method_gives_the_values_of_the_loop?dense_maps-65?",
    "engines::test_extreme_decays_and_resets?scalar?",
    "engines::test_equation?streaming?",
    "engines::test_equation?multi_query?",
    "engines::test_values_gradients_and_cache?shared-chunked?",
    "engines::test_attention_keeps_heads_channels_and_documents_apart?nan?",
    "engines::test_compute_rounds_what_is_multiplied",
    "engines::test_values_states_and_reverse*",
    "engines::test_gradients_agree*",
    "engines::test_scan_gives_the_published_recurrence?kimi_delta_attention?",
    "engines::test_one_entry_reaches_what_its_step_feeds?scalar?",
    "ops::test_values_states_and_gradients?linear_attn_normalize_varlen?",
    "ops::test_values_states_and_gradients?gdn_varlen_all?",
    "ops::test_values_states_and_gradients?rwkv4?",
    "ops::test_values_states_and_gradients?rwkv7?",
    "ops::test_values_states_and_gradients?mamba_chunk_scan_combined_seq_idx?",
    "ops::test_values_states_and_gradients?selective_scan_complex?",
    "ops::test_values_states_and_gradients?mlstm_state?",
    "ops::test_values_states_and_gradients?attn_varlen_window_sink?",
    "ops::test_a_system_is_asked_for_as_the_op_is_called",
    "ops::test_values_and_states_in_one_go_and_in_pieces",
    "ops::test_packed_sequences_are_separate_ones_static_or_traced",
    "nn::test_prefill_and_steps_are_the_full_pass?ssd-practice?",
    "nn::test_sampling_follows_the_temperature",
    "analysis::test_hankel_singular_values?scalar?",
    "aspects::test_state_over_time_is_the_rank_of_the_block_from_past_to_future",
    "bench::test_bfloat16_rounds_the_signals_and_keeps_decays_and_sums",
    "engines::test_kernel_systems_round_too",
    "report::test_errors_have_their_own_words_and_order",
    "systems::test_reset_runs_segments_apart*",
    "systems::test_split_anywhere_and_carry_the_state?rg_lru?",
    "tasks::test_a_stream_depends_on_the_step_alone",
    "tasks::test_automata",
    "tasks::test_expressions_have_the_value_that_python_gives*",
    "tasks::test_fuzzy_recall",
    "tasks::test_in_context_recall?plain?",
    "tasks::test_mnist_of_made_up_files",
    "tasks::test_pairs_of_reviews",
    "tasks::test_reviews_by_characters",
    "tasks::test_shuffled_is_uniform",
    "tasks::test_the_law?1?",
    "tasks::test_windows_and_answers_are_those_of_the_rows",
    "tasks::test_words_and_bytes_count_the_same_text",
    "tests::test_imports_go_downward",
    "tests::test_violation_is_found*",
    "training::test_damage_is_set_aside_and_made_good",
    "training::test_equals_torch_adamw?0.0-0.01?",
    "nn::test_a_bidirectional_classifier_does_not_see_padding_or_other_documents?paper?",
    "nn::test_a_classifier_of_pairs?mean?",
    "nn::test_values_at_every_step",
    "training::test_parts_of_a_batch_are_the_whole",
    "training::test_average_of_the_parameters",
    "training::test_a_killed_stream_resumes_in_mid_epoch?6?",
    "training::test_a_perplexity_is_of_all_queries_by_their_weights",
    "tasks::test_compression_is_decoded_from_the_last_features_alone",
    "systems::test_packed_is_alone_is_prefill_and_step?ssd?",
    "tasks::test_examples_are_what_the_task_says*",
    "tests::test_new_architecture",
    "training::test_torn_result_is_set_aside??",
    "aspects::test_one_object_is_section_file_column_and_sentence",
    "interop::test_a_selection_keeps_the_numbers_of_the_states_that_it_keeps",
    "cli::test_a_program_that_fails_does_not_end_the_others",
    "interop::test_it_continues_as_the_full_pass_says?mamba?",
    "interop::test_logits_and_hidden_states?mamba?",
    "interop::test_the_map_of_every_layer_is_exact?mamba?",
    "interop::test_what_is_saved_opens_again",
    "cli::test_compare_trains_reports_and_resumes",
    "training::test_resumes_bit_for_bit?2?",
    "interop::test_language_models?lm_s6_2?",
    "nn::test_a_hybrid_is_its_systems_and_decodes",
    "nn::test_attention_that_reads_both_ways_and_pools",
    "systems::test_packed_is_alone_is_prefill_and_step?mlstm*",
    "systems::test_packed_is_alone_is_prefill_and_step?gated_deltanet*",
    "systems::test_packed_is_alone_is_prefill_and_step?lstm*",
    "systems::test_large_input_gates_do_not_overflow?mlstm?",
    "systems::test_s6?True?",
    "systems::test_ssd?own2?",
    "systems::test_rwkv7",
    "systems::test_kda?None?",
    "systems::test_softmax_attention?False?",
    "systems::test_normalized_attention?all options-exp?",
    "systems::test_rg_lru?True?",
    "systems::test_forgetting_attention",
    "systems::test_attention_with_groups_norms_rotation_and_a_cap?softmax_attention?",
    "systems::test_packed_is_alone_is_prefill_and_step?softmax_attention-practised?",
    "systems::test_gradients_are_those_of_the_loop?lstm?",
    "selfcheck::test_an_op_of_ones_own_is_checked",
    "selfcheck::test_every_op_is_checked",
    "systems::test_newton_finds_the_states_of_an_slstm_from_nothing?sigmoid?",
    "core::test_vmap_over_systems?dense?",
    "engines::test_newton_is_the_loop?elementwise?",
    "core::test_a_number_in_a_normaliser_widens_nothing",
    "analysis::test_effects_are_those_of_changed_matrices?diagonal_factored?",
)


def name_of(nodeid: str) -> str:
    """The room and the name of a test, ``engines::test_values[scalar]``."""
    path, _, name = nodeid.partition("::")
    parts = Path(path).parts
    if parts[0] != "tests":  # a doctest
        return f"doctests::{name}"
    return f"{parts[1] if len(parts) > 2 else 'tests'}::{name.rpartition('::')[2] or name}"


def slow_tests() -> frozenset[str]:
    """The names in ``slow.txt``."""
    lines = LIST.read_text(encoding="utf-8").splitlines() if LIST.exists() else []
    return frozenset(line for line in lines if line and not line.startswith("#"))


def kept(name: str) -> bool:
    """Whether a test runs every time, whatever it costs."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in KEPT)


class Meter:
    """A plugin that writes a line per test: processor time, compilations and their seconds."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"{os.getpid()}.jsonl"
        self.compilations, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            self.compilations += 1
            self.seconds += duration_secs

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        began = time.process_time()
        result = yield
        self.own = time.process_time() - began
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        before = time.process_time(), time.monotonic(), self.compilations, self.seconds
        self.own = 0.0  # of a test that is skipped, or whose set-up fails
        result = yield
        cost = {
            "test": item.nodeid,
            "cpu": time.process_time() - before[0],
            "own": self.own,
            "wall": time.monotonic() - before[1],
            "compilations": self.compilations - before[2],
            "compiling": self.seconds - before[3],
        }
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(cost) + "\n")
        return result


class Names:
    """A plugin that knows the name of every test there is."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.names = {name_of(item.nodeid) for item in session.items}


def read(folder: Path) -> list[dict[str, Any]]:
    """What `Meter` wrote in all processes."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.open(encoding="utf-8")]
    return [json.loads(line) for line in lines]


def main() -> None:
    """Print where the time goes, or renew the list."""
    parser = argparse.ArgumentParser(prog="python -m tests.costs", description=__doc__)
    parser.add_argument("folder", type=Path, help="of --costs")
    parser.add_argument("--most", type=float, default=MOST_SECONDS, help="seconds of a quick test")
    parser.add_argument("--write", action="store_true", help="renew tests/slow.txt")
    words = parser.parse_args()
    costs = read(words.folder)
    files: dict[str, Counter] = defaultdict(Counter)
    for cost in costs:
        file = files[cost["test"].partition("::")[0]]
        file.update(tests=1, **{k: v for k, v in cost.items() if k != "test"})
    total = sum(files.values(), Counter())
    print(f"{'file':50} tests  cpu s  wall s  compilations  compiling s")
    dearest = sorted(files.items(), key=lambda item: -item[1]["cpu"])
    for name, file in (*dearest[:10], ("all", total)):
        print(
            f"{name:50} {file['tests']:5} {file['cpu']:6.0f} {file['wall']:7.0f} "
            f"{file['compilations']:13} {file['compiling']:12.0f}"
        )
    dear = {
        name_of(cost["test"])
        for cost in costs
        if cost["own"] > words.most and not kept(name_of(cost["test"]))
    }
    rest = sum(cost["cpu"] for cost in costs if name_of(cost["test"]) not in dear)
    print(f"\n{len(dear)} tests take more than {words.most:g} s; without them {rest:.0f} s remain")
    if words.write:
        about = (
            f"# Tests of more than {words.most:g} s of processor time: `make test-all` runs them.\n"
            "# Written by `python -m tests.costs`, which says how; not edited by hand.\n"
        )
        every = Names()
        if pytest.main(["--collect-only", "-qq"], plugins=[every]) != pytest.ExitCode.OK:
            parser.error("the tests cannot be collected; nothing is written")
        measured = {name_of(cost["test"]) for cost in costs}
        listed = dear | {name for name in slow_tests() - measured if not kept(name)}
        listed = sorted(listed & every.names)
        LIST.write_text(about + "\n".join(listed) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
