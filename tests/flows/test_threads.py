"""The number of threads of a loop is measured, on a clock that the test winds."""

from gwf_fast.flows.engines.base import ThreadChoice


class FakeLoop:
    """Takes ``seconds(threads)`` an iteration on a clock of its own."""

    def __init__(self, seconds):
        self.seconds, self.now, self.runs = seconds, 0.0, []

    def run(self, first, count, threads):
        assert first == sum(n for n, _ in self.runs)
        self.runs.append((count, threads))
        self.now += count * self.seconds(threads)
        return {"iterations": count, "map_loss": 1.0, "critic_loss": 2.0, "mean_map_loss": float(threads)}


def chosen(seconds, most=8, windows=400):
    loop = FakeLoop(seconds)
    choice = ThreadChoice(most, clock=lambda: loop.now)
    reports = [choice.run(loop, 50 * k, 50) for k in range(windows)]
    assert all(report["iterations"] == 50 for report in reports)
    return choice, loop


def test_threads_are_chosen_by_the_clock():
    assert chosen(lambda n: 4e-3 / n)[0].threads == 8
    assert chosen(lambda n: 4e-3 / n, most=1)[0].threads == 1
    assert chosen(lambda n: 1e-3 / min(n, 2))[0].threads == 2
    assert chosen(lambda n: 1e-3)[0].threads == 1
    choice, loop = chosen(lambda n: 5e-5 / n)
    assert choice.threads == 1
    assert {n for _, n in loop.runs} == {1}  # too short to try


def test_the_choice_of_threads_is_made_again():
    choice, loop = chosen(lambda n: 1e-3 / n, most=2)
    assert sum(n for n, threads in loop.runs if threads == 2) > 0.9 * 400 * 50
    loop.seconds = lambda n: 1e-3 * n**4  # another process takes the second core
    for k in range(400, 403):
        choice.run(loop, 50 * k, 50)
    assert choice.threads == 1
    loop.seconds = lambda n: 1e-3 / n
    for k in range(403, 500):
        choice.run(loop, 50 * k, 50)
    assert choice.threads == 2


def test_the_mean_is_over_all_iterations():
    """Trials with one thread and with more count by their iterations."""
    loop = FakeLoop(lambda n: 1e-3 / n)
    report = ThreadChoice(4, clock=lambda: loop.now).run(loop, 0, 50)
    assert len({threads for _, threads in loop.runs}) > 1
    assert abs(report["mean_map_loss"] - sum(n * threads for n, threads in loop.runs) / 50) < 1e-12
