"""A longer run does not grow: memory, open files, threads, and the files that it writes."""

import json

import harness
import remains

STEPS = 200


def test_a_long_run_does_not_grow(data, tmp_path):
    flags = [*data.flags("plain"), f"--workdir={tmp_path / 'run'}", f"--config.num_steps={STEPS}"]
    flags += ["--config.batch_size=2"]  # what grows with the steps does so with small ones, too
    flags += ["--config.log_every_steps=10", "--config.eval_every_steps=100", "--config.checkpoint.every_steps=50"]
    samples = tmp_path / "samples"
    harness.run("train.py", *flags, samples=str(samples), sample_every=20)
    sizes = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(sizes) == STEPS // 20
    settled = [size for size in sizes if size["step"] > 110]  # an evaluation and two saves have been
    for name in ("open_files", "threads", "arrays"):
        assert settled[-1][name] <= max(size[name] for size in settled[:2]) + 1, name
    grown = {name: settled[-1][name] - settled[0][name] for name in ("objects", "rss_mb")}
    assert grown["objects"] < 400, grown  # of 411,000, in 80 steps: a leak of five a step would be seen
    assert grown["rss_mb"] < 100, grown  # the heap settles slowly; soak.py has the slope over 3,000 steps
    lines = STEPS // 10 + 1 + 3 + STEPS // 50  # logged, the first, evaluations, and no more than one a save
    assert len(remains.metrics(tmp_path / "run")) <= lines
    assert remains.size_of(tmp_path / "run" / "metrics.jsonl") < lines * 300
    assert remains.size_of(tmp_path / "run" / "tensorboard") < lines * 6 * 100 + 1000
