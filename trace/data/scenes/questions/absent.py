"""Questions about what is not there: an object, an object in a relation, or free space (`questions.absent`).

Most are a true question of the same view in which one word is changed: a color, a noun or a relation. What a person may
doubt is not asked: all objects of the scene count, the hidden ones too, colors and nouns that resemble one of the scene
are left out, and relations and free space are judged by wider limits than those of true questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from ....core.images import FIRST_OBJECT
from ..objects import Bools, Floats
from ..objects.assets import all_categories
from ..objects.catalog import COLORS
from ..wording import DIRECTIONS, WORDINGS, absence_words, write_instruction
from ..world.surfaces import points_in_square
from .question import Absence, Goal, ViewQuestion
from .relations import NO, SpatialFacts, direction, footprint_gap, in_cone, split
from .view import SeenObject, View

Base = tuple[int | None, Goal, str]  # a question to change: the number of a true one or None, its goal and its words
Instead = list[tuple[SeenObject, str | None]]

ONE_WORD = 0.8  # part of the questions for which a true one of the view with one word changed is looked for first
OTHER_COLOR = 0.62  # distance in RGB from which nobody takes one color for another
OPPOSITE = 0.02  # metres: an object that is this far on the other side is not "left" for anybody
APART = 0.03  # part of the picture's height by which it has to stand lower or higher there
SMALL, LOW = 0.015, 0.05  # metres: where there is no room, not even a disc of this radius and height has some ...
FREE_CONE, REACH = 55.0, 0.6  # ... within this half angle (degrees) and distance (metres)
CLOSE = 0.03  # metres: nothing fits between objects that stand as close together
NEXT_TO = 0.35  # metres: what is further away is not "next to" for anybody
INVENTED = 12  # questions that are tried where no true one can be changed
TABLES = yaml.safe_load(Path(__file__).with_name("absent.yaml").read_text(encoding="utf-8"))


def absent_questions(
    view: View, facts: SpatialFacts, asked: Sequence[ViewQuestion], relations: Mapping[str, Sequence[str]], count: int,
    rng: np.random.Generator,
) -> list[ViewQuestion]:  # fmt: skip
    """Up to `count` questions about what is not there, half of them about free space where the view allows it.

    Args:
        asked: the true questions of the view.
        relations: those that may be asked, by kind of question.
    """
    finder = _Finder(view, facts, asked, relations, rng)
    texts, questions = {question.instruction for question in asked}, list[ViewQuestion]()
    for _ in range(count):
        families = [["color", "category", "relation"], ["free"]]
        reasons = [str(reason) for index in rng.permutation(2) for reason in rng.permutation(families[index])]
        first = rng.random() < ONE_WORD
        found = (new for reason in reasons for one_word in (first, not first) for new in finder.find(reason, one_word))
        new = next((question for question in found if question.instruction not in texts), None)
        if new is not None:
            texts.add(new.instruction)
            questions.append(new)
    return questions


class _Finder:
    """Finds the questions of one view, by reason, in a random order."""

    def __init__(
        self, view: View, facts: SpatialFacts, asked: Sequence[ViewQuestion], relations: Mapping[str, Sequence[str]],
        rng: np.random.Generator,
    ) -> None:  # fmt: skip
        self.view, self.facts, self.rng, self.wording = view, facts, rng, view.config.questions.wording
        self.asked: list[Base] = [(n, one.goal, one.instruction) for n, one in enumerate(asked) if not one.marks]
        sides = dict.fromkeys([*relations["relational"], *relations["located"]])
        self.sides = [name for name in sides if name in (*DIRECTIONS, "next to")]
        self.places = [name for name in relations["free"] if name in (*DIRECTIONS, "next to", "on", "inside")]
        self.between = list(relations["between"])
        self.categories = all_categories(view.config.objects.assets)
        self._ground: dict[float, Floats] = {}

    def find(self, reason: str, one_word: bool) -> Iterator[ViewQuestion]:
        """Yield questions of a reason; with `one_word`, those that differ from a true question in one word."""
        change = {"relation": self._relations, "free": self._free}.get(reason, partial(self._names, reason))
        bases = self.asked if one_word else self._invented(reason)
        for index in self.rng.permutation(len(bases)):
            yield from change(*bases[index])

    def _invented(self, reason: str) -> list[Base]:
        """Questions that need not be true: of those about objects a word is changed, as of the true ones."""
        objects, unique = self.view.objects, self.view.unique
        goals = [Goal("direct", None, target=seen) for seen in objects]
        if reason == "relation":
            goals = [Goal("relational", name, target=seen, references=(other,))
                     for name in self.sides for seen in objects for other in unique if seen is not other]  # fmt: skip
        elif reason == "free":
            goals = [Goal("free", name, references=(seen,)) for name in self.places for seen in unique]
            goals += [Goal("between", name, references=(seen, other))
                      for name in self.between for seen in unique for other in unique if seen is not other]  # fmt: skip
        bases: list[Base] = []
        for goal in [goals[index] for index in self.rng.permutation(len(goals))[:INVENTED]]:
            names, target = [seen.body.name for seen in goal.references], ""
            if goal.target is not None:
                target = goal.target.body.category if names else goal.target.body.name
            words = write_instruction(goal.relation, goal.target is None, target, names, self.rng, self.wording)
            bases.append((None, goal, words))
        return bases

    def _names(self, reason: str, near: int | None, goal: Goal, text: str) -> Iterator[ViewQuestion]:
        """Other colors or nouns of the objects that a question names: no such object is in the scene."""
        named = [(seen, seen.body.name) for seen in (goal.target, *goal.references) if seen]
        if goal.target is not None and goal.kind != "direct":
            named[0] = goal.target, goal.target.body.category
        for seen, name in named:
            color, noun = name.removesuffix(seen.body.category).strip(), seen.body.category
            if reason == "color":
                others = [f"{new} {noun}" for new in self._colors(noun) if color]
            else:
                others = [f"{color} {new}".strip() for new in self._nouns(color)]
            if not others or text.count(f"the {name}") != 1:
                continue
            instead: Instead = [(seen, None)]
            if reason == "color":
                alike = [one for one in self.view.objects if one.body.category == noun and one is not seen]
                instead += [(one, None) for one in alike]
            kept = replace(goal, references=tuple(one for one in goal.references if one is not seen))
            words, word = text.replace(f"the {name}", f"the {others[0]}"), "color" if reason == "color" else "noun"
            yield self._question("absent object", reason, others[0], kept, instead, words, near, word)

    def _colors(self, noun: str) -> list[str]:
        """Colors that resemble none of an object of this noun, of a part of it, or of an object that looks like it."""
        bodies = [body for body in self.view.bodies if body.category == noun]
        seen = [part.rgb for body in bodies for part in body.parts]
        seen += [COLORS[body.color] for body in self.view.bodies if body.color and _alike(body.category, noun)]
        known = self.view.config.objects.colors
        own = [color for color in self.categories[noun].colors or known if color in known]
        apart = np.linalg.norm(np.array([COLORS[color] for color in own]).reshape(-1, 1, 3) - np.array(seen), axis=-1)
        return [own[index] for index in self.rng.permutation(len(own)) if apart[index].min() >= OTHER_COLOR]

    def _nouns(self, color: str) -> list[str]:
        """Nouns that resemble none of the scene's, of objects that may have a color ("" is any)."""
        nouns, there = self.view.config.categories, {body.category for body in self.view.bodies}
        shuffled = [nouns[index] for index in self.rng.permutation(len(nouns))]
        return [noun for noun in shuffled if noun not in there and not any(_alike(noun, other) for other in there)
                and (not color or color in (self.categories[noun].colors or COLORS))]  # fmt: skip

    def _relations(self, near: int | None, goal: Goal, text: str) -> Iterator[ViewQuestion]:
        """Other relations and other nouns of a question about an object: no object of the noun has the relation."""
        if goal.kind != "relational" or goal.target is None or len(goal.references) != 1:
            return
        own, noun = str(goal.relation), goal.target.body.category
        changes = [(name, noun, "relation", self._other_words(text, own, name)) for name in self.sides if name != own]
        if own in self.sides and f"the {noun}" in text:
            nouns = sorted({seen.body.category for seen in self.view.objects} - {noun})
            changes += [(own, new, "noun", text.replace(f"the {noun}", f"the {new}", 1)) for new in nouns]
        for relation, new, word, words in [changes[index] for index in self.rng.permutation(len(changes))]:
            if words and (instead := self._without(new, relation, goal.references[0])):
                asked = replace(goal, relation=relation)
                yield self._question("absent relation", "relation", new, asked, instead, words, near, word)

    def _without(self, noun: str, relation: str, reference: SeenObject) -> Instead:
        """The visible objects of a noun and where each lies; [] unless all, the hidden ones too, lack the relation."""
        config, ground, instead = (
            self.view.config.relations,
            self.view.camera.ground,
            list[tuple[SeenObject, str | None]](),
        )
        for slot, (body, seen) in enumerate(zip(self.view.bodies, self.view.seen, strict=True)):
            if body.category != noun or seen is reference:
                continue
            if self.view.supports[body.support].owner == reference.instance - FIRST_OBJECT:
                return []  # what stands on the reference is on no side of it
            offset, lies = np.subtract(body.position, reference.body.position), None
            for name in DIRECTIONS:
                along, across = split(offset, np.array(direction(name, ground)))
                if relation == name and along > -OPPOSITE:
                    return []
                if in_cone(along, across, 0.0, config.cone - config.ambiguity):
                    lies = name
            if seen is not None and relation in DIRECTIONS:  # nor is it there in the picture
                x, foot, (left, _, right, bottom) = reference.center[0], reference.box[3], seen.box
                there = {"left": left < x, "right": right > x, "front": bottom > foot - APART,
                         "behind": bottom < foot + APART}  # fmt: skip
                if there[relation]:
                    return []
            judged = self.facts.near("next to")[reference.instance - FIRST_OBJECT, slot]
            if relation == "next to" and (judged != NO or footprint_gap(body, reference.body) < NEXT_TO):
                return []
            if seen is not None:
                instead.append((seen, lies))
        return instead

    def _free(self, near: int | None, goal: Goal, text: str) -> Iterator[ViewQuestion]:
        """Other relations and references of a question about free space (an invented one as it is): there is none."""
        own, references = str(goal.relation), goal.references
        if goal.kind not in ("free", "between") or own not in (*self.places, *self.between):
            return
        changes: list[tuple[str, tuple[SeenObject, ...], str, str | None]] = []
        if near is None:
            changes.append((own, references, "", text))
        elif len(references) == 1:
            changes += [(name, references, "relation", self._other_words(text, own, name)) for name in self.places]
        for seen in references if near is not None else ():
            for new in self.view.unique if text.count(f"the {seen.body.name}") == 1 else ():
                noun, color = new.body.category == seen.body.category, new.body.color == seen.body.color
                if new not in references and (noun or color):
                    words = text.replace(f"the {seen.body.name}", f"the {new.body.name}")
                    others = tuple(new if one is seen else one for one in references)
                    changes.append((own, others, "color" if noun else "noun", words))
        for relation, others, word, words in [changes[index] for index in self.rng.permutation(len(changes))]:
            if words and words != text or near is None:
                reason, held = self._no_room(relation, others)
                if reason:
                    asked, instead = (
                        replace(goal, relation=relation, references=others),
                        [(one, relation) for one in held],
                    )
                    yield self._question("absent free", reason, "free space", asked, instead, str(words), near, word)

    def _no_room(self, relation: str, references: Sequence[SeenObject]) -> tuple[str, list[SeenObject]]:
        """Why a place has no room, "" if it has some or if a person may doubt it; and what is there instead."""
        view, body, owner = self.view, references[0].body, references[0].instance - FIRST_OBJECT
        if relation in ("on", "inside"):
            area = "top" if relation == "on" else "inside"
            places = {place.area: number for number, place in enumerate(view.supports) if place.owner == owner}
            if not places and body.category in TABLES[relation]:
                return "impossible", []
            held = [seen for seen in view.objects if seen.body.support == places.get(area, -1)]
            full = held and view.num_pixels(places[area]) and not self._roomy(view.area(places[area])[2], places[area])
            return ("full", held) if full else ("", [])
        support = view.supports[body.support]
        if support.owner is not None or any(seen.body.support != body.support for seen in references):
            return "", []
        if relation == "between":
            other = references[1]
            alone = (self.facts.between(owner, other.instance - FIRST_OBJECT) == NO).all()
            return "impossible" if alone and footprint_gap(body, other.body) <= CLOSE else "", []
        # Where the pixels without an object lie at the support's height, the floor beside a table too.
        z = support.center[2]
        if z not in self._ground:
            objects = (view.instances >= FIRST_OBJECT) & (view.instances < FIRST_OBJECT + len(view.bodies))
            rows, columns = np.nonzero(~objects)
            self._ground[z] = view.camera.ground_points(rows, columns, z)
        for ground in (self._ground[z][::16], self._ground[z]):  # most places have room at one of a few pixels
            points = ground[points_in_square(ground, body.position, body.reach + REACH)]
            points = points[body.distance(points) <= (NEXT_TO if relation == "next to" else REACH)]
            if relation != "next to":
                vector = np.array(direction(relation, view.camera.ground))
                along, across = split(points - np.array(body.position), vector)
                points = points[in_cone(along, across, 0.5 * float(body.extent(vector)), FREE_CONE)]
            if self._roomy(points, body.support):
                return "", []
        return "hidden", []

    def _roomy(self, points: Floats, support: int) -> bool:
        """Whether anything, however small, can stand at one of the points [n, 2]."""
        free: Bools = np.ones(len(points), bool)
        self.view.obstacles.exclude(free, points, self.view.supports[support], LOW, SMALL)
        return bool(free.any())

    def _other_words(self, text: str, old: str, new: str) -> str | None:
        """The instruction with the words for another relation; None if those for the old one are not found in it."""
        before, after = (
            sorted(sorted({words.partition("{")[0] for words in WORDINGS[self.wording].places.get(name, ())}), key=len)
            for name in (old, new)
        )
        found = [words for words in before if text.count(f" {words}the ") == 1]
        if not found or not after or old == new:
            return None
        words = str(self.rng.choice(after))
        return text.replace(f" {found[-1]}the ", f" {words}the ").replace(" as seen in the picture", "")

    def _question(
        self, kind: str, reason: str, looked_for: str, goal: Goal, instead: Instead, text: str, near: int | None,
        word: str,
    ) -> ViewQuestion:  # fmt: skip
        names = [seen.body.name for seen in goal.references] if kind != "absent object" else []
        answer = absence_words(reason, looked_for, goal.relation if names else None, names)
        task = "free_space" if goal.target is None else "object_reference"
        absence = Absence(reason, task, looked_for, answer, tuple(instead), near, word if near is not None else None)
        surface = self.view.root([*goal.references, *(seen for seen, _ in instead)][0].body)
        mask = np.zeros(self.view.instances.shape, bool)
        own = Goal(kind, goal.relation, mask, references=goal.references, surface=surface, absence=absence)
        return ViewQuestion(own, text, (), {})


def _alike(noun: str, other: str) -> bool:
    return any(noun in names and other in names for names in TABLES["lookalikes"])
