"""Recipes: what is wrong with one is told with its line, its key, what was wanted, and the nearest name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmembed.errors import SpecError, UnknownName
from mmembed.testing import tiny_embedder
from mmembed.train.recipe import Task, read_recipe
from mmembed.train.signatures import lines_of

from .runs import RECIPE


def read(tmp_path, text, *changes):
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path, changes)


def line(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_a_recipe_is_what_it_says(tmp_path):
    recipe = read(tmp_path, RECIPE)
    (stage,) = recipe.stage
    assert (recipe.name, recipe.seed, recipe.model.load, stage.steps, stage.lr) == ("small", 3, "tiny", 6, 1e-3)
    assert stage.train == ("backbone", "projector")
    assert recipe.data["pairs"].columns.query.text == "q"
    assert recipe.folder == tmp_path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("steps = 6", "stepz = 6", "'stepz'. Did you mean 'steps'?"),
        ("steps = 6", "steps = 6.5", "stage[0].steps must be a whole number, not 6.5"),
        ("steps = 6", "steps = true", "stage[0].steps must be a whole number, not True"),
        ("lr = 1e-3", 'lr = "fast"', "stage[0].lr must be a number, not 'fast'"),
        ('train = ["backbone", "projector"]', 'train = "backbone"', "stage[0].train must be a list of texts, not 'backbone'"),
        ('"projector"]', '"projektor"]', "'projektor'. Did you mean 'projector'?"),
        ('kind = "infonce"', 'kind = "infonse"', "'infonse'. Did you mean 'infonce'?"),
        ("temperature = 0.05", "temparature = 0.05", "'temparature'. Did you mean 'temperature'?"),
        ("temperature = 0.05", 'temperature = "low"', "temperature must be a number"),
        ("temperature = 0.05", 'weight = "much"', "weight must be a number, not 'much'"),
        ("lr = 1e-3", "lr = inf", "stage[0].lr must be a finite number, not inf"),
        ('path = "pictures.jsonl"', 'path = "pictures.jsonl"\nlimits = 3', "'limits'. Did you mean 'limit'?"),
        ('{ text = "name" }', '{ txt = "name" }', "'txt'. Did you mean 'text'?"),
        ('data = ["pairs", "pictures"]', 'data = ["pears"]', "'pears'. Did you mean 'pairs'?"),
        ('load = "tiny"', 'load = "tiny"\nprecision = "fp23"', "'fp23'. Did you mean 'fp32'?"),
        ('load = "tiny"', 'load = "tiny"\n[model.spec]\nmax_lenght = 9', "'max_lenght'. Did you mean 'max_length'?"),
        ('load = "tiny"', 'load = "tiny"\n[model.spec]\nmax_length = "9"', "model.spec.max_length must be a whole number"),
        ('name = "small"', 'nam = "small"', "'nam'. Did you mean 'name'?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_line(tmp_path, old, new, said):
    text = RECIPE.replace(old, new, 1)
    with pytest.raises(SpecError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)
    wrong = new.splitlines()[-1]
    lines = {line(text, wrong)} | ({1} if "nam = " in new else set())
    if "pears" in new:  # told of the whole recipe: which data there is, is known only there
        return
    at = str(caught.value).split("line ")[1].split(":")[0]
    near = line(text, "[[stage]]") if "projektor" in new else int(at)
    assert int(at) in lines or int(at) == near


HOT = '{ kind = "infonce", temperature = "hot" }'
TWICE = '{ kind = "sum", losses = [{ kind = "infonce", hard_negatives = "onw" }] }'


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ('kind = "matryoshka", dimensions = [8], loss = { kind = "infonce", temprature = 1.0 }',
         ".loss is called 'temprature'. Did you mean 'temperature'?"),
        (f'kind = "sum", losses = [{{ kind = "infonce" }}, {HOT}]', ".losses[1].temperature must be a number, not 'hot'"),
        ('kind = "sum", losses = [{ temperature = 1.0 }]', ".losses[0] needs a kind"),
        ('kind = "sum", losses = ["infonce"]', ".losses[0] must be a table, not 'infonce'"),
        ('kind = "sum", losses = []', ".losses must not be empty"),
        (f'kind = "matryoshka_2d", dimensions = [8], loss = {TWICE}',
         ".loss.losses[0].hard_negatives is called 'onw'. Did you mean 'own'? Known: all, none, own."),
        ('kind = "infonce", temperature = nan', ".temperature must be a finite number, not nan"),
        ('kind = "infonce", temperature = -0.05', ".temperature=-0.05 is no number above 0"),
        ('kind = "positive_aware", share = 5', ".share=5.0 is no number above 0 and of at most 1"),
        ('kind = "proxies", start = "pears"', "'pears'. Did you mean 'pairs'?"),
    ],
)  # fmt: skip
def test_a_wrong_setting_of_a_loss_within_another_is_told_with_its_line(tmp_path, loss, said):
    text = RECIPE.replace("  losses = [{", "  losses = [\n    {").replace('kind = "infonce", temperature = 0.05', loss)
    with pytest.raises(SpecError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)
    if "pears" not in loss:  # which data there is, is known of the whole recipe
        assert f"line {line(text, loss)}: " in str(caught.value)
        assert "stage[0].task[0].losses[0]." in str(caught.value)


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        ("-1.0", "=-1.0 is no number above 0"),
        ("nan", " .*not nan"),
        ("inf", " .*not inf"),
        ("0", " = 0: .*teaches nothing; leave it out"),
    ],
)
def test_a_weight_of_a_loss_is_above_0(tmp_path, weight, said):
    with pytest.raises(SpecError, match=rf"stage\[0\]\.task\[0\]\.losses\[0\]\.weight{said}"):
        read(tmp_path, RECIPE.replace("temperature = 0.05", f"weight = {weight}"))
    with pytest.raises(SpecError, match=rf"losses\[0\]\.weight{said}"):
        Task(data=("pairs",), batch=8, losses=({"kind": "infonce", "weight": float(weight)},))


def test_a_contrastive_loss_with_nothing_to_learn_from_is_refused(tmp_path):
    alone = RECIPE.replace("batch = 8", "batch = 1").replace("group = 4", "")
    over = '{ kind = "matryoshka", dimensions = [8], loss = { kind = "infonce" } }'
    for text in (alone, alone.replace('{ kind = "infonce", temperature = 0.05 }', over)):
        with pytest.raises(
            SpecError, match=r"stage 'first': the loss '(infonce|matryoshka)' tells nothing apart in a batch of 1"
        ):
            read(tmp_path, text)
        read(tmp_path, text, 'stage.0.task.0.data=["pairs"]', 'data.pairs.mined="mined.jsonl"')
        read(tmp_path, text, 'stage.0.task.0.data=["pairs"]', 'data.pairs.columns.negatives=[{ text = "n" }]')
    for kind in ("splade", "self_distillation", "siglip"):
        with pytest.raises(SpecError, match=f"'{kind}' tells nothing apart in a batch of 1"):
            read(tmp_path, alone, f'stage.0.task.0.losses=[{{ kind = "{kind}" }}]')
    for kind in ("embedding_matching", "language_modelling", "flops"):
        read(tmp_path, alone, f'stage.0.task.0.losses=[{{ kind = "{kind}" }}]', 'stage.0.task.0.data=["pairs"]')
    itself = RECIPE.replace(', positive = { text = "p" }', "")
    spec = tiny_embedder().spec
    two = replace(spec, prompts={name: {"any": f"{name}: {{content}}"} for name in ("query", "document", "other")})
    with pytest.raises(
        SpecError, match="'infonce' only drives things apart on data 'pairs', whose positives are the queries"
    ):
        read(tmp_path, itself).check_views(spec)
    read(tmp_path, itself).check_views(two)  # by default the two sides have prompts of these names
    with pytest.raises(SpecError, match="only drives things apart"):
        read(tmp_path, itself, 'data.pairs.query_prompt="other"', 'data.pairs.positive_prompt="other"').check_views(two)
    for change in ("stage.0.dropout=true", 'stage.0.task.0.losses=[{ kind = "proxies" }]'):
        read(tmp_path, itself, change).check_views(spec)


def test_a_loss_that_reads_scores_is_refused_where_there_are_none(tmp_path):
    for kind in ("cosent", "kl", "margin_mse"):
        with pytest.raises(
            SpecError, match=f"the loss '{kind}' reads scores, and data 'pairs' has none: columns.score"
        ):
            read(tmp_path, RECIPE, f'stage.0.task.0.losses=[{{ kind = "{kind}" }}]')


def test_scores_that_a_loss_of_answers_does_not_read_are_told_once(tmp_path, recwarn):
    scored = RECIPE.replace('positive = { text = "p" }', 'positive = { text = "p" }, score = "s"')
    scored = scored.replace('["pairs", "pictures"]', '["pairs"]')
    two = scored + scored[scored.index("[[stage]]") :].replace('"first"', '"second"')
    with pytest.warns(UserWarning, match="a task that draws 'pairs' takes pairs of any columns.score for") as told:
        read(tmp_path, two)
    assert len(told) == 1
    over = '{ kind = "matryoshka", dimensions = [8], loss = { kind = "cosent" } }'
    beside = scored.replace("temperature = 0.05 }", f"temperature = 0.05 }}, {over}")
    within = scored.replace("[{", '[{ kind = "sum", losses = [{ kind = "cosent" }, {').replace("0.05 }]", "0.05 }] }]")
    for text in (beside, within):
        with pytest.warns(UserWarning, match="takes pairs of any columns.score for answers"):
            read(tmp_path, text)
    negatives = beside.replace('score = "s"', 'score = "s", negatives = [{ text = "n" }]')
    both = beside.replace("temperature = 0.05", "positive_above = 3.0")
    summed = within.replace("temperature = 0.05", "positive_above = 3.0")
    taught = scored.replace('"infonce", temperature = 0.05', '"similarity_distillation"')
    for text in (RECIPE, scored.replace('"infonce", temperature = 0.05', '"cosent"'), negatives, both, summed, taught):
        read(tmp_path, text)
    assert not recwarn


def test_a_recipe_written_in_python_refuses_a_loss_that_cannot_be_built():
    with pytest.raises(UnknownName, match=r"value of losses\[0\]\.by is called 'techer'"):
        Task(data=("pairs",), batch=8, losses=({"kind": "infonce", "by": "techer"},))


def test_lacking_keys_are_named_with_their_table(tmp_path):
    text = RECIPE.replace("steps = 6\n", "")
    with pytest.raises(SpecError, match=rf"line {line(text, '[[stage]]')}: .*lacks steps"):
        read(tmp_path, text)
    with pytest.raises(SpecError, match="lacks model"):
        read(tmp_path, RECIPE.replace('[model]\nload = "tiny"\n', ""))


def test_a_file_that_is_no_toml_is_told_with_the_parsers_line(tmp_path):
    with pytest.raises(SpecError, match=r"no TOML: .*line 2"):
        read(tmp_path, "a = 1\nb = = 2\n")
    with pytest.raises(SpecError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")


def test_a_model_is_loaded_or_composed_not_both(tmp_path):
    with pytest.raises(SpecError, match="one of the two"):
        read(tmp_path, RECIPE.replace('load = "tiny"', ""))


def test_what_is_held_out_is_not_trained_on(tmp_path):
    with pytest.raises(SpecError, match="held out, and trained on: pairs"):
        read(tmp_path, RECIPE + '\n[held_out.names]\ndata = "pairs"\n')
    start = RECIPE.replace('kind = "infonce", temperature = 0.05', 'kind = "proxies", start = "names"')
    names = '\n[data.names]\nkind = "jsonl"\npath = "names.jsonl"\ncolumns = { query = { text = "q" } }\n'
    with pytest.raises(SpecError, match="held out, and trained on: names"):
        read(tmp_path, start + names + '[held_out.names]\ndata = "names"\n')


def test_set_changes_a_value_and_says_where_it_cannot(tmp_path):
    recipe = read(tmp_path, RECIPE, "stage.0.steps=9", "seed = 4", "stage.0.task.0.losses.0.temperature=0.1")
    assert recipe.stage[0].steps == 9
    assert recipe.seed == 4
    assert recipe.stage[0].task[0].losses[0]["temperature"] == 0.1
    for change in ("stage.3.steps=9", "stage.0.steps", "stage.0.steps=many words", "name.first=1"):
        with pytest.raises(SpecError, match="--set"):
            read(tmp_path, RECIPE, change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("name=foo", """'foo' is no value of TOML, where texts are quoted: --set 'name="foo"'"""),
        ("stage.0.name=the first", """texts are quoted: --set 'stage.0.name="the first"'"""),
        ("stage.0.dropout=True", "true and false are in small letters"),
        ("stage.0.betas=[0.9,", "Invalid value"),
        ("stage.0.stepz=3", "'stepz'. Did you mean 'steps'?"),
        ("modle.load='tiny'", "'modle'. Did you mean 'model'?"),
        ("stage.0.task.0.losses.0.temprature=3", "'temprature'. Did you mean 'temperature'?"),
        ("data.pears.limit=3", "data.pears needs a kind"),
    ],
)
def test_what_set_cannot_read_is_told_with_what_to_write(tmp_path, change, said):
    with pytest.raises(SpecError) as caught:
        read(tmp_path, RECIPE, change)
    assert said in str(caught.value)


def test_set_of_a_stage_that_is_not_there_says_which_are(tmp_path):
    for change, said in (
        ("stage.1.steps=3", "there is no stage.1: the recipe has 1, stage.0"),
        ("stage.words.steps=3", "there is no stage.words: the recipe has 1, stage.0"),
        ("stage.0.task.4.batch=3", "there is no stage.0.task.4: the recipe has 1, stage.0.task.0"),
    ):
        with pytest.raises(SpecError) as caught:
            read(tmp_path, RECIPE, change)
        assert str(caught.value) == f"--set {change}: {said}"


def test_lines_are_known_of_nested_and_repeated_tables():
    nested = 'a = 1\n"b.c" = """x\n[y]\n"""\n[d.x]\np = [1,\n  {z = 2},\n]\n'
    text = nested + '[[s]]\nn = 1.5\n[s.o]\nl = 1\n[[s.t]]\nq = 2\n[[s]]\nn = "#"\n[[s.t]]\nq = 5\n'
    lines = lines_of(text)
    assert lines["b.c",] == 2
    assert lines["d", "x", "p", 1, "z"] == 7
    assert lines["s", 0, "o", "l"] == 12
    assert lines["s", 0, "t", 0, "q"] == 14
    assert lines["s", 1, "n"] == 16
    assert lines["s", 1, "t", 0, "q"] == 18


def test_the_recipe_of_pico_is_one():
    recipe = read_recipe(Path(__file__).parents[2] / "adapters/pico/recipe.toml")
    words, looks, *_ = recipe.stage
    assert words.spec == {"layers": (0,), "norm_layers": True}
    assert looks.task[0].augment[0]["kind"] == "affine"
    assert recipe.model.identity
    assert recipe.data["drawings"].columns.positive.image == "image"


def test_a_pooling_may_be_said_by_its_kind_alone_as_compose_has_it(tmp_path):
    text = RECIPE.replace('load = "tiny"', 'compose = { backbone = "tiny", tokenizer = "tiny", pooling = "mean" }')
    assert read(tmp_path, text).model.compose["pooling"] == {"kind": "mean"}


@pytest.mark.parametrize(
    ("loss", "more", "said"),
    [
        ("infonce", "share = 2.0", "stage 'first' learns from all its tasks every step, whatever their share"),
        ("infonce", 'teacher = "wise"', "teacher = 'wise': no loss of its task reads what it says"),
        ("infonce", 'masking = { token = "_" }', "masking hides tokens to be predicted, and no loss"),
        ("language_modelling", 'augment = [{ kind = "colour" }]', "losses of a language head read texts alone"),
    ],
)
def test_a_setting_that_would_do_nothing_is_told(tmp_path, loss, more, said):
    text = RECIPE.replace('{ kind = "infonce", temperature = 0.05 }', f'{{ kind = "{loss}" }}')
    text = text.replace('["pairs", "pictures"]', '["pairs"]')
    read(tmp_path, text)
    with pytest.raises(SpecError, match=said):
        read(tmp_path, text + f"  {more}\n")


def test_pictures_are_nothing_for_a_language_head(tmp_path):
    with pytest.raises(
        SpecError, match="the loss 'language_modelling' reads texts alone, and data 'pictures' has pictures"
    ):
        read(tmp_path, RECIPE, 'stage.0.task.0.losses=[{ kind = "language_modelling" }]')
