"""What is known of a planned study: its table, and what its runs will cost."""

from distill.doctor.examine import Options, predict_gpu_hours
from distill.evaluation.metric import METRICS
from distill.study.results import read_results
from distill.study.stored import StudyPlan
from distill.study.table import Table, make_table


def study_table(plan: StudyPlan) -> tuple[Table, list[str]]:
    """Returns the table of what is done, and a sentence for each report that is damaged."""
    runs = {key: (run, plan.state(run)) for run in plan.runs for key in run.cells.values()}
    results, damaged = read_results(plan.folder, runs)
    metric = plan.recipe(plan.runs[0]).evaluate.metric if plan.runs else "top1"
    return make_table(plan.spec, plan.cells, results, METRICS[metric]), damaged


def predicted_hours(plan: StudyPlan, gpu: str, num_gpus: int) -> dict[str, float | None]:
    """Returns the GPU hours that `distill doctor` predicts of each run; None if it cannot. Steps
    that a run takes over from a trunk cost nothing.
    """
    runs = {run.name: run for run in plan.runs}
    options = Options(gpus=num_gpus, gpu=gpu)
    hours = {}
    for run in plan.runs:
        recipe = plan.recipe(run)
        own = predict_gpu_hours(recipe, options)
        budget = recipe.train.budget
        if own is not None and run.trunk is not None and budget is not None:
            shorter = plan.recipe(runs[run.trunk])
            longest = max(
                (each.schedule.cooldown for each in shorter.students.values()),
                key=lambda cooldown: cooldown.amount,
            )
            assert shorter.train.budget
            if longest.unit == shorter.train.budget.unit == budget.unit:
                own *= 1 - (shorter.train.budget.amount - longest.amount) / budget.amount
        hours[run.name] = own
    return hours
