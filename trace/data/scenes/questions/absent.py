"""Questions about what is not there: an object, an object in a relation, or free space (`questions.absent`).

Most are a true question of the same view in which one word is changed: a color, a noun or a relation. What a person may
doubt is not asked: all objects of the scene count, the hidden ones too, colors and nouns that resemble one of the scene
are left out, and relations and free space are judged by wider limits than those of true questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ....core.images import FIRST_OBJECT
from ..objects import Bools, Floats
from ..objects.assets import all_categories
from ..objects.catalog import COLORS
from ..wording import DIRECTIONS, WORDINGS, absence_words, write_instruction
from ..world.surfaces import points_in_square
from .question import Absence, Goal, ViewQuestion
from .relations import NO, SpatialFacts, direction, footprint_gap, in_cone, split
from .view import SeenObject, View

Base = tuple[int | None, Goal, str]  # the number of a true question of the view, or None; its goal and its words

ONE_WORD = 0.8  # part of the questions for which a true one of the view with one word changed is looked for first
OTHER_COLOR = 0.62  # distance in RGB from which nobody takes one color for another
WIDE_CONE = 80.0  # degrees: an object outside of this cone is not "left" for anybody
SMALL, LOW = 0.015, 0.05  # metres: where there is no room, not even a disc of this radius and height has some ...
FREE_CONE, REACH = 55.0, 0.6  # ... within this half angle (degrees) and distance (metres)
CLOSE = 0.035  # metres: nothing fits between objects that stand as close together
NEXT_TO = 0.22  # metres: what is further away is not "next to" for anybody
TRIES = 12  # places looked at for a question about free space
# Nouns of which one may be taken for another, above all in a small picture.
LOOKALIKES = tuple(
    set(names.split(", "))
    for names in (
        "can, mug, jug, vase, pot, bucket, basket, candle, bottle, kettle, teapot, watering can, wine glass, trophy, drum",
        "fork, spoon, spatula, screwdriver, paintbrush, wrench, hammer, flashlight, magnifying glass, carrot, banana",
        "box, crate, drawer, chest, gift, toaster, die, toy brick, radio, photo camera, book, laptop, cutting board",
        "salt shaker, chess pawn, bowling pin, hourglass, snowman, rocket, cone, spinning top, bell, lantern, lamp",
        "ball, apple, pear, pumpkin", "cake, cupcake, donut, roll of tape, mushroom, hat", "cactus, potted plant, tree",
        "bowl, plate, pan, pot, hat", "teddy bear, rubber duck, toy robot", "toy car, toy truck, toy train",
        "toy boat, iron", "chair, stool",
    )
)  # fmt: skip
# In and on which nothing can be put, for anybody.
SOLID = set(
    "apple, pear, banana, carrot, mushroom, hammer, screwdriver, wrench, fork, spoon, paintbrush, dumbbell, chess pawn, "
    "bowling pin, snowman, book, die, cutting board, toy brick, rubber duck, teddy bear".split(", ")
)
POINTED = set(
    "apple, pear, banana, cactus, tree, rocket, bowling pin, chess pawn, snowman, spinning top, bell, candle, "
    "rubber duck".split(", ")
)


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
        self.nouns = {body.category for body in view.bodies}
        self._ground: dict[float, Floats] = {}

    def find(self, reason: str, one_word: bool) -> Iterator[ViewQuestion]:
        """Yield questions of a reason; with `one_word`, those that differ from a true question in one word."""
        bases = self._shuffled(self.asked) if one_word else self._invented(reason)
        for base in bases if reason != "free" else [None]:
            if base is None:
                yield from self._free_space(bases)
            elif reason == "relation":
                yield from self._relation(*base)
            else:
                yield from self._names(reason, *base)

    def _shuffled(self, items: Sequence[Base]) -> list[Base]:
        return [items[index] for index in self.rng.permutation(len(items))]

    def _invented(self, reason: str) -> list[Base]:
        """Questions that need not be true, of which a word is changed as of the true ones."""
        goals = [Goal("direct", None, target=seen) for seen in self.view.objects]
        if reason in ("relation", "free"):
            unique = self.view.unique
            names, kind = (self.sides, "relational") if reason == "relation" else (self.places, "free")
            targets = self.view.objects if reason == "relation" else [None]
            goals = [Goal(kind, name, target=target, references=(seen,))
                     for seen in unique for name in names for target in targets if target is not seen]  # fmt: skip
            if reason == "free":
                goals += [Goal("between", name, references=(a, b)) for name in self.between
                          for a in unique for b in unique if a is not b]  # fmt: skip
        bases: list[Base] = []
        for index in self.rng.permutation(len(goals))[:TRIES]:
            goal, names = goals[index], [seen.body.name for seen in goals[index].references]
            target = "" if goal.target is None else goal.target.body.category if names else goal.target.body.name
            words = write_instruction(goal.relation, goal.target is None, target, names, self.rng, self.wording)
            bases.append((None, goal, words))
        return bases

    # --- an object that is not there

    def _names(self, reason: str, near: int | None, goal: Goal, text: str) -> Iterator[ViewQuestion]:
        """Other colors or nouns of the objects that a question names."""
        named = (goal.target,) if goal.kind == "direct" else goal.references
        for seen in named:
            if seen is not None and text.count(f"the {seen.body.name}") == 1:
                body = seen.body
                others = [f"{new} {body.category}" for new in self._colors(body.category)]
                if reason == "category":
                    others = [f"{body.color} {new}".strip() for new in self._other_nouns(body.color)]
                for other in others[:1]:
                    kept = tuple(reference for reference in goal.references if reference is not seen)
                    words = text.replace(f"the {body.name}", f"the {other}")
                    yield self._no_object(reason, other, seen, replace(goal, references=kept), words, near)
        last = goal.target
        if reason == "category" and last is not None and goal.kind != "direct" and f"the {last.body.category}" in text:
            for new in self._other_nouns("")[:1]:
                words = text.replace(f"the {last.body.category}", f"the {new}", 1)
                yield self._no_object(reason, new, last, goal, words, near)

    def _no_object(
        self, reason: str, name: str, seen: SeenObject, goal: Goal, text: str, near: int | None
    ) -> ViewQuestion:
        instead = [seen]
        if reason == "color":
            instead += [one for one in self.view.objects if one.body.category == seen.body.category and one is not seen]
        word = "color" if reason == "color" else "noun"
        return self._question("absent object", reason, name, goal, [(one, None) for one in instead], text, near, word)

    def _colors(self, noun: str) -> list[str]:
        """Colors that resemble none of an object of this noun, of a part of it, or of an object that looks like it."""
        bodies = [body for body in self.view.bodies if body.category == noun]
        seen = [part.rgb for body in bodies for part in body.parts]
        seen += [COLORS[body.color] for body in self.view.bodies if body.color and _alike(body.category, noun)]
        category, known = all_categories(self.view.config.objects.assets)[noun], self.view.config.objects.colors
        own = [color for color in category.colors or known if color in known and bodies[0].color]
        apart = np.linalg.norm(np.array([COLORS[color] for color in own]).reshape(-1, 1, 3) - np.array(seen), axis=-1)
        return [own[index] for index in self.rng.permutation(len(own)) if apart[index].min() >= OTHER_COLOR]

    def _other_nouns(self, color: str) -> list[str]:
        """Nouns that resemble none of the scene's, of objects that may have a color ("" is any)."""
        nouns, known = self.view.config.categories, all_categories(self.view.config.objects.assets)
        return [
            nouns[index] for index in self.rng.permutation(len(nouns))
            if not any(nouns[index] == other or _alike(nouns[index], other) for other in self.nouns)
            and (not color or color in (known[nouns[index]].colors or COLORS))
        ]  # fmt: skip

    # --- an object that is not in a relation

    def _relation(self, near: int | None, goal: Goal, text: str) -> Iterator[ViewQuestion]:
        """Other relations of a question about an object, and other nouns of the scene."""
        if goal.kind != "relational" or goal.target is None or len(goal.references) != 1:
            return
        own, noun = str(goal.relation), goal.target.body.category
        changes = [(name, noun, "relation", self._other_words(text, own, name)) for name in self.sides if name != own]
        if own in self.sides and f"the {noun}" in text:
            nouns = sorted({seen.body.category for seen in self.view.objects} - {noun})
            changes += [(own, new, "noun", text.replace(f"the {noun}", f"the {new}", 1)) for new in nouns]
        for index in self.rng.permutation(len(changes)):
            relation, new, word, words = changes[index]
            instead = self._not_there(new, relation, goal.references[0]) if words else []
            if words and instead:
                asked = replace(goal, relation=relation)
                yield self._question("absent relation", "relation", new, asked, instead, words, near, word)

    def _not_there(self, noun: str, relation: str, reference: SeenObject) -> list[tuple[SeenObject, str | None]]:
        """The visible objects of a noun with the direction in which each lies, [] unless all clearly lack the relation."""
        config, ground, instead = self.view.config.relations, self.view.camera.ground, []
        for slot, (body, seen) in enumerate(zip(self.view.bodies, self.view.seen, strict=True)):
            if body.category != noun or seen is reference:
                continue
            offset, lies = np.subtract(body.position, reference.body.position), None
            for name in DIRECTIONS:
                along, across = split(offset, np.array(direction(name, ground)))
                if relation == name and in_cone(along, across, 0.0, WIDE_CONE):
                    return []
                if in_cone(along, across, 0.0, config.cone - config.ambiguity):
                    lies = name
            if seen is not None and relation in ("left", "right"):  # nor is it in the picture
                if (seen.center[0] > reference.center[0]) == (relation == "right"):
                    return []
            if relation == "next to" and (
                self.facts.near(relation)[reference.instance - FIRST_OBJECT, slot] != NO
                or footprint_gap(body, reference.body) < NEXT_TO
            ):
                return []
            if seen is not None:
                instead.append((seen, lies))
        return instead

    # --- free space that is not there

    def _free_space(self, bases: Sequence[Base]) -> Iterator[ViewQuestion]:
        """Other relations and other references of the questions about free space, and invented ones as they are."""
        changes: list[tuple[Base, str, str, tuple[SeenObject, ...]]] = []
        for near, goal, text in bases:
            own, references = str(goal.relation), goal.references
            if near is None:
                changes.append(((near, goal, text), "", own, references))
                continue
            if goal.kind not in ("free", "between") or own not in (*self.places, *self.between):
                continue
            for name in self.places if len(references) == 1 else ():
                if name != own and (words := self._other_words(text, own, name)):
                    changes.append(((near, goal, words), "relation", name, references))
            for position, seen in enumerate(references):
                for new in self.view.unique if text.count(f"the {seen.body.name}") == 1 else ():
                    same = new.body.category == seen.body.category, new.body.color == seen.body.color
                    if new not in references and any(same):
                        words = text.replace(f"the {seen.body.name}", f"the {new.body.name}")
                        others = (*references[:position], new, *references[position + 1 :])
                        changes.append(((near, goal, words), "color" if same[0] else "noun", own, others))
        for index in self.rng.permutation(len(changes))[:TRIES]:
            (near, goal, text), word, relation, references = changes[index]
            if found := self._no_room(relation, references):
                reason, there = found
                asked, instead = (
                    replace(goal, relation=relation, references=references),
                    [(one, relation) for one in there],
                )
                yield self._question("absent free", reason, "free space", asked, instead, text, near, word)

    def _no_room(self, relation: str, references: Sequence[SeenObject]) -> tuple[str, list[SeenObject]] | None:
        """Why a place has no room, and what is there instead; None if it has some, or if a person may doubt it."""
        view, body = self.view, references[0].body
        owner, area = references[0].instance - FIRST_OBJECT, {"on": "top", "inside": "inside"}.get(relation)
        places = [number for number, place in enumerate(view.supports) if place.owner == owner]
        if area is not None:
            if not places and body.category in (POINTED if relation == "on" else SOLID):
                return "impossible", []
            number = next((number for number in places if view.supports[number].area == area), body.support)
            held = [seen for seen in view.objects if seen.body.support == number]
            points = view.area(number)[2]
            full = number in places and held and len(points) and not self._roomy(points, number).any()
            return ("full", held) if full else None
        support = view.supports[body.support]
        if support.owner is not None or any(seen.body.support != body.support for seen in references):
            return None
        if relation == "between":
            within = self.facts.between(owner, references[1].instance - FIRST_OBJECT)
            others = [one for one, judged in zip(view.bodies, within, strict=True) if judged != NO]
            close = footprint_gap(body, references[1].body) <= CLOSE
            return None if others or not close else ("impossible", [])
        # Where the pixels without an object lie at the support's height, the floor beside a table too.
        z, reach = support.center[2], body.reach + REACH
        if z not in self._ground:
            objects = (view.instances >= FIRST_OBJECT) & (view.instances < FIRST_OBJECT + len(view.bodies))
            rows, columns = np.nonzero(~objects)
            self._ground[z] = view.camera.ground_points(rows, columns, z)
        points = self._ground[z][points_in_square(self._ground[z], body.position, reach)]
        near = NEXT_TO if relation == "next to" else REACH
        points = points[body.distance(points) <= near]
        if relation != "next to":
            vector = np.array(direction(relation, view.camera.ground))
            along, across = split(points - np.array(body.position), vector)
            points = points[in_cone(along, across, 0.5 * float(body.extent(vector)), FREE_CONE)]
        return None if self._roomy(points, body.support).any() else ("hidden", [])

    def _roomy(self, points: Floats, support: int) -> Bools:
        free = np.ones(len(points), bool)
        self.view.obstacles.exclude(free, points, self.view.supports[support], LOW, SMALL)
        return free

    def _other_words(self, text: str, old: str, new: str) -> str | None:
        """The instruction with the words for another relation; None if those for the old one are not found in it."""
        before, after = (
            sorted({words.partition("{")[0] for words in WORDINGS[self.wording].places.get(name, ())}, key=len)
            for name in (old, new)
        )
        found = [words for words in before if text.count(f" {words}the ") == 1]
        if not found or not after:
            return None
        words = str(self.rng.choice(after))
        return text.replace(f" {found[-1]}the ", f" {words}the ").replace(" as seen in the picture", "")

    def _question(
        self, kind: str, reason: str, looked_for: str, goal: Goal, instead: Sequence[tuple[SeenObject, str | None]],
        text: str, near: int | None, word: str,
    ) -> ViewQuestion:  # fmt: skip
        names = [seen.body.name for seen in goal.references] if kind != "absent object" else []
        answer = absence_words(reason, looked_for, goal.relation if names else None, names)
        task = "free_space" if goal.target is None else "object_reference"
        absence = Absence(reason, task, looked_for, answer, tuple(instead), near, word if near is not None else None)
        shown = (goal.target, *goal.references, *(seen for seen, _ in instead))
        surface = self.view.root(next(seen.body for seen in shown if seen is not None))
        mask = np.zeros(self.view.instances.shape, bool)
        own = Goal(kind, goal.relation, mask, references=goal.references, surface=surface, absence=absence)
        return ViewQuestion(own, text, (), {})


def _alike(noun: str, other: str) -> bool:
    return noun != other and any({noun, other} <= names for names in LOOKALIKES)
