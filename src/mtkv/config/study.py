"""A study: one validated config, from a mapping (Snakemake's `config`) or from YAML files.

`load_study` deletes null entries, resolves `extends`, validates each section and then the references between sections, and reports
every problem it finds at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from mtkv.config.arms import Arm, Seeds
from mtkv.config.base import Name, Registered, Section, distinct
from mtkv.config.claims import Claim, ComparisonConfig
from mtkv.config.data import POCKET_DATASETS, DataConfig
from mtkv.config.errors import ConfigError, Loc, Problem, unknown
from mtkv.config.evaluation import EvaluationConfig
from mtkv.config.extends import resolve
from mtkv.config.kv import AlignConfig
from mtkv.config.models import ModelConfig, TeachersConfig
from mtkv.config.overlay import ENTRY_SECTIONS, read_overlaid, without_deleted
from mtkv.config.pydantic_errors import config_loc, problems_of
from mtkv.config.raw_tree import plain_tree
from mtkv.config.references import reference_problems
from mtkv.config.resources import Resources
from mtkv.config.runs import run_problems, with_own_study
from mtkv.registry import look_beside


class ReportConfig(Section):
    """What the report shows besides what it always does."""

    figures: Annotated[list[Annotated[str, Registered()]], AfterValidator(distinct)] = Field(
        default=[],
        description="Figures of your own, as module:function of the results, which returns a list of figures.",
    )


class Study(Section):
    """One study: student, teachers, data, arms, datasets, seeds, and the claims they are to decide. Arms are resolved."""

    study: Name = Field(description="Name of the study; its results go to results/<study>/.")
    description: str = Field(default="", description="What the study is about, for the report.")
    seeds: Seeds = Field(default=[42, 43, 44], description="Seeds of the runs of every arm that does not give its own.")
    datasets: Annotated[list[Name], AfterValidator(distinct)] = Field(
        default=list(POCKET_DATASETS), min_length=1, description="Datasets every run is evaluated on."
    )
    data: DataConfig = Field(default=DataConfig(), description="Rows to read and train on, and the tests' size.")
    student: ModelConfig = Field(default=ModelConfig(name="student"), description="The model that is trained.")
    teachers: TeachersConfig = Field(default=TeachersConfig(), description="The teachers and the store of their KV.")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="How runs answer questions.")
    arms: dict[Name, Arm] = Field(
        min_length=1, description="Ways to make a model, by name. In an overlay, null deletes an arm."
    )
    comparison: ComparisonConfig = Field(default=ComparisonConfig(), description="Settings of the statistics.")
    claims: dict[Name, Claim] = Field(
        default={}, description="Sentences the results support or refute, by id. In an overlay, null deletes a claim."
    )
    report: ReportConfig = Field(default=ReportConfig(), description="What the report shows of your own.")
    resources: Resources = Field(default=Resources(), description="What jobs ask of the scheduler, by stage.")

    @model_serializer(mode="wrap")
    def _without_default_report(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `report` where it adds nothing, so that a study from before the section keeps its digests."""
        return {key: value for key, value in handler(self).items() if key != "report" or self.report.figures}

    def arm(self, name: str) -> Arm:
        """The arm called `name`. Raises KeyError."""
        return self.arms[name]

    def seeds_of(self, arm: str) -> list[int]:
        """Seeds of the runs of one arm: its own or the study's."""
        own = self.arms[arm].seeds
        return list(self.seeds if own is None else own)

    def runs(self) -> list[tuple[str, int]]:
        """Every (arm, seed) that the study trains or evaluates, in the order of the config."""
        return [(arm, seed) for arm in self.arms for seed in self.seeds_of(arm)]

    def trained(self, arm: str) -> bool:
        """Whether the arm trains its student."""
        return self.arms[arm].training is not None

    def latent_arms(self) -> list[str]:
        """Arms whose student has latent tokens."""
        return [name for name, arm in self.arms.items() if arm.latent is not None and arm.latent.tokens > 0]

    def arms_that_teach(self) -> list[str]:
        """Arms whose runs are models of this study: its student, teachers, or parts of them."""
        models = [self.student, *self.teachers.models.values()]
        found = {run.arm for model in models for run in model.runs if run.study == self.study}
        return [name for name in self.arms if name in found]

    def teachers_used(self) -> list[str]:
        """Teachers whose KV any arm reads, in the order of the config."""
        used = {teacher for arm in self.arms.values() if arm.kv for teacher in arm.kv.teachers}
        return [teacher for teacher in self.teachers.models if teacher in used]

    def aligns(self, teacher: str) -> list[AlignConfig]:
        """The different align settings that arms use with one teacher, in the order of the arms."""
        found: dict[str, AlignConfig] = {}
        for arm in self.arms.values():
            if arm.kv and teacher in arm.kv.teachers:
                found.setdefault(arm.kv.align.slug, arm.kv.align)
        return list(found.values())

    def maps(self) -> list[str]:
        """The maps that arms use, as `<teacher>/<align>`: their files lie in results/<study>/maps."""
        return [f"{teacher}/{align.slug}" for teacher in self.teachers.models for align in self.aligns(teacher)]

    def needs_attention(self, teacher: str) -> bool:
        """Whether some arm selects this teacher's tokens by its attention."""
        arms = (arm.kv for arm in self.arms.values() if arm.kv and teacher in arm.kv.teachers)
        return any(kv.select.needs_attention for kv in arms)

    def row_statistics(self, teacher: str) -> list[str]:
        """What some arm weighs this teacher by: names of `ROW_STATISTICS`, sorted."""
        arms = (arm.kv for arm in self.arms.values() if arm.kv and teacher in arm.kv.teachers)
        return sorted({name for kv in arms for name in kv.fusion.row_statistics})


def read_study(*yaml_paths: str | Path) -> Study:
    """The study of a YAML file with later files overlaid; modules that it names may lie beside any of them. Raises ConfigError."""
    look_beside(yaml_paths)
    return load_study(read_overlaid(*yaml_paths))


def load_study(config: Mapping[str, Any]) -> Study:
    """The study that a mapping describes. Raises ConfigError with every problem found."""
    tree = with_own_study(without_deleted(plain_tree(config)))
    problems: list[Problem] = []
    ancestors: dict[str, list[str]] = {}
    names = {loc: _entry_names(tree, loc) for loc in ENTRY_SECTIONS}
    if isinstance(tree.get("arms"), dict):
        inheritance = resolve(tree["arms"])
        tree["arms"], ancestors = inheritance.arms, inheritance.ancestors
        problems += inheritance.problems
    tree, not_cut = _with_teacher(tree)
    problems += not_cut
    study, found = _validated(tree)
    no_arm_left = ("arms",) if problems else None  # an empty `arms` would only repeat what is wrong with `extends`
    problems += [problem for problem in found if problem.loc != no_arm_left]
    if study is not None:
        problems += reference_problems(study, names["arms",], names["teachers", "models"])
        problems += run_problems(study, names["arms",])
    if problems:
        raise ConfigError(_without_inherited(problems, ancestors))
    assert study is not None
    return study


def _with_teacher(tree: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The id of the teacher that the student is cut from, replaced by what the study says of that teacher; no student where it is wrong."""
    student, known = tree.get("student"), _entry_names(tree, ("teachers", "models"))
    name = student.get("teacher") if isinstance(student, dict) else None
    if not isinstance(student, dict) or not isinstance(name, str):
        return tree, []
    if name not in known:
        return _without(tree, ("student",)), [Problem(("student", "teacher"), unknown(name, "a teacher id", known))]
    teacher = tree["teachers"]["models"][name]
    if isinstance(teacher, dict) and teacher.get("source") == "merged":
        message = f"{name!r} is merged; allowed: a teacher of another source"
        return _without(tree, ("student",)), [Problem(("student", "teacher"), message)]
    return tree | {"student": student | {"teacher": teacher}}, []


def _validated(tree: dict[str, Any]) -> tuple[Study | None, list[Problem]]:
    """The study and the problems of its sections. Where there are some, the study of the valid entries, or None if that fails too."""
    try:
        return Study.model_validate(tree), []
    except ValidationError as error:
        locs = [config_loc(detail["loc"]) for detail in error.errors(include_url=False)]
        problems = problems_of(error, Study)
    for loc in locs:
        tree = _without(tree, _broken_part(loc))
    try:
        return Study.model_validate(tree), problems
    except ValidationError:
        return None, problems


def _broken_part(loc: Loc) -> Loc:
    """Path of the named entry (an arm, a claim …) in which `loc` lies, or of its whole section."""
    for section in ENTRY_SECTIONS:
        if loc[: len(section)] == section and len(loc) > len(section):
            return loc[: len(section) + 1]
    return loc[:1]


def _without(tree: dict[str, Any], loc: Loc) -> dict[str, Any]:
    rest = {key: value for key, value in tree.items() if key != loc[0]}
    if len(loc) == 1 or not isinstance(tree.get(str(loc[0])), dict):
        return rest
    return tree | {str(loc[0]): _without(tree[str(loc[0])], loc[1:])}


def _entry_names(tree: Any, loc: Loc) -> list[str]:
    for key in loc:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return list(tree) if isinstance(tree, dict) else []


def _without_inherited(problems: list[Problem], ancestors: dict[str, list[str]]) -> list[Problem]:
    """Each problem once: an arm that inherits a mistake is not named, the arm that wrote it is."""
    found = dict.fromkeys(problems)
    return [
        problem
        for problem in found
        if not any(
            Problem(("arms", ancestor, *problem.loc[2:]), problem.message) in found
            for ancestor in (
                ancestors.get(str(problem.loc[1]), []) if problem.loc[:1] == ("arms",) and problem.loc[1:] else []
            )
        )
    ]
