"""A recipe in words, for model cards."""

from collections.abc import Iterator

from distill.recipe import Recipe, schema


def describe_recipe(recipe: Recipe, student: str) -> list[str]:
    """Return how a student was trained, a sentence for each part."""
    return [sentence for sentence in _sentences(recipe, student) if sentence]


def _sentences(recipe: Recipe, student: str) -> Iterator[str]:
    for index in range(recipe.num_stages):
        own = recipe.at_stage(index)
        spec, data = own.students[student], own.data
        stage = f"Stage {recipe.stages[index].name}: " if recipe.stages else ""
        yield (
            f"{stage}{own.train.budget} of {_source(data.train)}"
            f"{'' if data.fraction == 1 else f' ({100 * data.fraction:g} % of each class)'},"
            f" {data.image_size} px, batches of {own.train.batch_size_global},"
            f" {own.train.precision}."
        )
        yield f"Objective: {_objective(spec.objective, several=bool(recipe.teachers))}."
        yield f"Optimizer: {_optimizer(spec.optimizer)}; {_schedule(spec.schedule)}."
        yield f"Augmentation: {_augmentation(data.augment, data.mixing)}."
    spec = recipe.students[student]
    parts = [
        f"stochastic depth {spec.drop_path:g}" if spec.drop_path else "",
        f"dropout {spec.drop_rate:g}" if spec.drop_rate else "",
        f"weight averages of decay {', '.join(f'{d:g}' for d in spec.ema.decays)}"
        if spec.ema.decays
        else "",
    ]
    if any(parts):
        yield f"Also: {', '.join(part for part in parts if part)}."
    others = len(recipe.students) - 1
    if others:
        others_are = f"{others} other student{'s' if others > 1 else ''}"
        yield f"{others_are} learned behind the same teacher{'s' if recipe.teachers else ''}."


def _source(source: schema.SourceSpec) -> str:
    """A source without the folders of the machine."""
    if isinstance(source, schema.FashionMnistSpec):
        size = "" if source.path else ", a subset of 6,000 images"
        return f"Fashion-MNIST ({source.split}{size})"
    if source.path is not None and source.path.startswith("hf://"):
        return source.path
    kinds = {
        "image_folder": "an image folder",
        "parquet": "a Parquet table",
        "arrow": "an Arrow table",
        "saved": "a saved data set",
        "stream": "a stream of shards",
    }
    return kinds[source.kind]


def _objective(spec: schema.ObjectiveSpec, *, several: bool) -> str:
    """The losses in words.

    Args:
        several: whether the run has several teachers.
    """
    terms = []
    soft, hint = "the teacher's logits", "the teacher's features"
    if several:
        named = spec.soft_teachers or {}
        shares = ", ".join(f"{name} {weight:g}" for name, weight in named.items() if weight)
        read = "the logits of each" if spec.combine == "losses" else f"the {spec.combine}"
        soft = f"{read} of {f'teachers {shares}' if shares else 'all teachers'}"
    if spec.hint_teacher is not None:
        hint = f"the features of teacher {spec.hint_teacher}"
    learnt = (
        (spec.hard, "labels"),
        (spec.soft, soft),
        (spec.hint, hint),
        (spec.masked, "removed patches of its images"),
    )
    for term, learns in learnt:
        if term is None:
            continue
        keys = term.model_dump(exclude={"loss", "weight"}, exclude_defaults=True)
        how = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in keys.items())
        terms.append(f"{term.weight:g} x {term.loss} on {learns}{f' ({how})' if how else ''}")
    return " + ".join(terms)


def _optimizer(spec: schema.OptimizerSpec) -> str:
    parts = [f"{spec.name}, learning rate {spec.lr:g}"]
    if spec.weight_decay:
        parts.append(f"weight decay {spec.weight_decay:g}")
    if spec.clip_grad_norm is not None:
        parts.append(f"gradients clipped to norm {spec.clip_grad_norm:g}")
    parts += [f"{name} {value}" for name, value in spec.args.items()]
    return ", ".join(parts)


def _schedule(spec: schema.ScheduleSpec) -> str:
    warmup = f" after {spec.warmup} of warm-up" if spec.warmup.amount else ""
    cooldown = f" with {spec.cooldown} of cool-down" if spec.cooldown.amount else ""
    return f"{spec.name} schedule{warmup}{cooldown}"


def _augmentation(augment: schema.AugmentSpec, mixing: schema.MixingSpec) -> str:
    parts = [f"{augment.crop.replace('_', ' ')} crop"]
    if augment.horizontal_flip:
        parts.append(f"horizontal flip {augment.horizontal_flip:g}")
    if augment.auto_augment:
        parts.append(augment.auto_augment)
    if augment.color_jitter:
        parts.append(f"colour jitter {augment.color_jitter:g}")
    if augment.random_erasing:
        parts.append(f"random erasing {augment.random_erasing:g}")
    if augment.repeats > 1:
        parts.append(f"{augment.repeats} views of each image in a batch")
    if mixing.mixup:
        parts.append(f"mixup {mixing.mixup:g}")
    if mixing.cutmix:
        parts.append(f"cutmix {mixing.cutmix:g}")
    return ", ".join(parts)
