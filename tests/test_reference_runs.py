"""The reference runs: what cannot be run ends with one line, and a failed step with its status."""

import pytest

from benchmarks import reference_runs


@pytest.mark.parametrize(("options", "message"), [
    (["--no-demo"], "error: --no-demo: leaves nothing to run without --real DIR"),
    (["--real", "somewhere", "--folds", "0"], "error: --folds 0: expected 1 or more")])
def test_what_cannot_be_run(workplace, command, options, message):
    code, _, err = command("benchmarks.reference_runs", *options)
    assert code == 2
    assert err.strip() == message


def test_a_failed_step_ends_with_its_status(workplace, capfd):
    with pytest.raises(SystemExit) as stop:
        reference_runs.call("evaluate", "--pred", "nowhere", "--truth", "nowhere")
    assert stop.value.code == 2
    assert capfd.readouterr().err.startswith("error: nowhere")
