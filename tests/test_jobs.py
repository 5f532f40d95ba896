from dataclasses import replace

import pytest

from autounet.time_budget.deadline import Deadline
from autounet.workflow.cache import move_aside
from autounet.workflow.executor import SequentialExecutor
from autounet.workflow.jobs import Job


def job(tmp_path, name, needs=(), key="1"):
    return Job(name, needs, key, tmp_path / f"{name}.json", name)


def test_a_done_job_is_kept_and_a_changed_key_runs_again(tmp_path):
    ran = []
    executor = SequentialExecutor(lambda job: ran.append(job.name), lambda: None)
    executor.run([job(tmp_path, "a"), job(tmp_path, "b", ("a",))])
    executor.run([job(tmp_path, "a"), job(tmp_path, "b", ("a",))])
    assert ran == ["a", "b"]
    executor.run([job(tmp_path, "a"), job(tmp_path, "b", ("a",), key="2")])
    assert ran == ["a", "b", "b"]


def test_a_job_runs_again_when_something_it_wrote_is_gone(tmp_path):
    result, ran = tmp_path / "result", []

    def work(job):
        ran.append(job.name)
        result.write_text("")

    jobs = [replace(job(tmp_path, "a"), writes=(result,))]
    executor = SequentialExecutor(work, lambda: None)
    executor.run(jobs)
    executor.run(jobs)
    assert ran == ["a"]
    result.unlink()
    executor.run(jobs)
    assert ran == ["a", "a"]


def test_a_failed_job_is_not_done(tmp_path):
    def work(job):
        if job.name == "b":
            raise RuntimeError("stop")

    jobs = [job(tmp_path, "a"), job(tmp_path, "b", ("a",))]
    with pytest.raises(RuntimeError, match="stop"):
        SequentialExecutor(work, lambda: None).run(jobs)
    assert jobs[0].is_done()
    assert not jobs[1].is_done()


def test_an_order_that_breaks_needs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="comes before"):
        SequentialExecutor(lambda job: None, lambda: None).run([job(tmp_path, "b", ("a",))])


def test_nothing_is_deleted_when_a_folder_is_moved_aside(tmp_path):
    for content in ("first", "second"):
        (tmp_path / "fold_0").mkdir()
        (tmp_path / "fold_0" / "weights").write_text(content)
        move_aside(tmp_path / "fold_0")
    assert (tmp_path / "fold_0.old_1" / "weights").read_text() == "first"
    assert (tmp_path / "fold_0.old_2" / "weights").read_text() == "second"
    assert move_aside(tmp_path / "fold_0") is None


def test_a_resumed_command_spends_what_is_left_of_the_same_promise(tmp_path):
    first = Deadline(100.0, tmp_path / "clock.json")
    first.before = 60.0
    first.save()
    assert 39 < Deadline(100.0, tmp_path / "clock.json").remaining() <= 40
    assert 199 < Deadline(200.0, tmp_path / "clock.json").remaining() <= 200
    assert Deadline(None, tmp_path / "clock.json").remaining() is None
